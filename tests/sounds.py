"""Audio for the tests: a melody, and files in all formats that users send."""

import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np

RATES = {"mp3": 44100, "flac": 44100, "m4a": 48000, "ogg": 48000, "wav": 44100}
CODECS = {
    "mp3": "libmp3lame",
    "flac": "flac",
    "m4a": "aac",
    "ogg": "libopus",
    "wav": "pcm_s16le",
}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def melody(seconds=3.0, rate=44100, channels=2):
    """C major arpeggio of decaying harmonics, four notes a second: [C, N] float32."""
    time = np.arange(round(seconds * rate)) / rate
    notes = 261.63 * 2 ** (np.array([0, 4, 7, 12])[(time * 4).astype(int) % 4] / 12)
    phase = 2 * np.pi * np.cumsum(notes) / rate
    wave = sum(np.sin(k * phase) / k**2 for k in (1, 2, 3)) * np.exp(-3 * (time * 4 % 1) / 4)
    return np.tile(wave * 0.3, (channels, 1)).astype(np.float32)


def write(path, wav, rate=None, codec=None):
    """wav [C, N] -> a file in the format of the path's extension."""
    extension = path.suffix[1:]
    rate = rate or RATES[extension]
    layout = LAYOUTS[wav.shape[0]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[extension], rate=rate, layout=layout)
        resampler = av.AudioResampler(stream.format, layout, rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wav), "fltp", layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        size = stream.codec_context.frame_size or 4096
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write_picture(path):
    """A PNG of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


def write_video(path, wav, rate=48000):
    """An mp4 with video, and with sound unless `wav` is None."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        audio = None if wav is None else container.add_stream("aac", rate=rate, layout="stereo")
        for index in range(20):
            image = np.full((64, 64, 3), index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            for start in range(0, wav.shape[1] - 1023, 1024):
                block = np.ascontiguousarray(wav[:, start : start + 1024])
                sound = av.AudioFrame.from_ndarray(block, "fltp", "stereo")
                sound.sample_rate, sound.pts = rate, start
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def length(path):
    """Seconds, channels and sample rate of an audio file."""
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        stream = container.streams.audio[0]
        samples = sum(block.size for block in blocks) / stream.channels
        return samples / stream.sample_rate, stream.channels, stream.sample_rate


def ffmpeg(*arguments):
    """Run ffmpeg with these arguments; a failure is an error of the test."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-nostdin"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def stairs(path, *options, seconds=4, channels=2, rate=44100):
    """A file in which second k is a sine of 300 + 100 k Hz, so that time can be read off it.

    `options` are ffmpeg's, for the output.
    """
    sine = "0.4*sin(2*PI*(300+100*floor(t))*t)"
    source = f"aevalsrc='{'|'.join([sine] * channels)}':d={seconds}:s={rate}"
    ffmpeg("-f", "lavfi", "-i", source, *options, path)
    return path


def pitches(wav, rate=32000):
    """The pitch in Hz of each second of wav [N], rounded to 100 Hz; 0 where it is silent."""
    wav = np.asarray(wav)
    found = []
    for second in range(round(len(wav) / rate)):
        middle = wav[int((second + 0.2) * rate) : int((second + 0.8) * rate)]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        hertz = float(spectrum.argmax()) * rate / len(middle)
        found.append(0 if np.abs(middle).max() < 1e-3 else round(hertz / 100) * 100)
    return found
