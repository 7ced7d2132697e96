"""Normalization reaches its target for all kinds of audio; files decode to the samples written."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import av
import numpy as np
import pyloudnorm
import pytest
import torch
import torchaudio.functional as AF

from musicgen import output
from musicgen.errors import InputError, OutputError
from musicgen.generation import Generation
from musicgen.output import STRATEGIES, limit, loudness, normalize, save, write, write_clips
from musicgen.request import Request
from musicgen.runtime.timings import Timings

RATE = 32000
CEILING = 10 ** (-1 / 20)


def noise(channels=2, seconds=2.0, level=0.1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, int(RATE * seconds), generator=generator) * level


def tone(hertz=440.0, seconds=2.0, level=0.3):
    time = torch.arange(int(RATE * seconds)) / RATE
    return (torch.sin(2 * torch.pi * hertz * time) * level).repeat(2, 1)


def drums(seconds=4.0):
    """Decaying bursts: 20 dB and more between peak and loudness."""
    time = torch.arange(int(RATE * seconds)) / RATE
    return noise(2, seconds, 0.3) * torch.exp(-(time % 0.5) * 40)


def bs1770(wav):
    """The loudness in LUFS as pyloudnorm measures it."""
    return pyloudnorm.Meter(RATE).integrated_loudness(wav.T.numpy().astype(np.float64))


BROKEN = {
    "silence": torch.zeros(2, RATE),
    "nan": torch.full((2, RATE), float("nan")),
    "one nan": torch.cat([noise(), torch.full((2, 1), float("nan"))], dim=1),
    "inf": torch.full((1, RATE), float("inf")),
    "short": noise(seconds=0.01),
    "one sample": torch.ones(2, 1),
    "denormal": noise(level=1e-40),
    "huge": noise(level=1e30),
    "opposite phase": torch.cat([tone()[:1], -tone()[:1]]),
    "clicks": torch.nn.functional.pad(torch.ones(2, 1), (1000, 32000)),
    "drums": drums(),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", BROKEN)
def test_any_audio_comes_out_finite_and_under_the_ceiling(name, strategy):
    wav = BROKEN[name]
    out = normalize(wav, strategy, RATE)
    assert out.shape == wav.shape
    assert torch.isfinite(out).all()
    assert float(out.abs().max()) <= CEILING + 1e-6
    if name == "silence":
        assert not out.any()


@pytest.mark.parametrize(
    "wav",
    [noise(), noise(1), noise(level=5.0), noise(level=1e-3), tone(), tone(level=2.0), drums()],
    ids=["noise", "mono", "hot", "quiet", "tone", "hot tone", "drums"],
)
def test_loudness_is_on_target(wav):
    assert bs1770(normalize(wav, "loudness", RATE)) == pytest.approx(-14, abs=0.5)


@pytest.mark.parametrize("wav", [noise(), noise(1), drums()], ids=["noise", "mono", "drums"])
def test_loudness_is_torchaudios(wav):
    assert loudness(wav, RATE) == pytest.approx(float(AF.loudness(wav, RATE)), abs=1e-4)


def test_loudness_of_very_short_audio_is_that_of_its_repetition():
    short = noise(seconds=0.1)
    assert loudness(short, RATE) == pytest.approx(bs1770(short.repeat(1, 20)), abs=0.3)


def test_rms_and_peak_are_on_target():
    rms = normalize(tone(), "rms", RATE).square().mean().sqrt()
    assert 20 * torch.log10(rms) == pytest.approx(-18, abs=0.01)
    assert float(normalize(noise(), "peak", RATE).abs().max()) == pytest.approx(CEILING)


def test_clip_leaves_quiet_audio_untouched():
    assert torch.equal(normalize(tone(level=0.2), "clip", RATE), tone(level=0.2))


def test_limiter_adds_little_distortion():
    """Cutting a tone at half its height puts 20% into its odd harmonics; the limiter under 1%."""
    wav = tone(hertz=440.0, level=1.0)
    spectrum = torch.fft.rfft(limit(wav, RATE, 0.5)[0, RATE // 2 : RATE // 2 + RATE]).abs()
    assert float(spectrum[1320] / spectrum[440]) < 0.01
    cut = torch.fft.rfft(wav.clamp(-0.5, 0.5)[0, :RATE]).abs()
    assert float(cut[1320] / cut[440]) > 0.1


def test_limiter_keeps_the_stereo_image_and_quiet_parts():
    wav = tone(level=0.4)
    wav[1] *= 0.5
    wav[:, RATE] = torch.tensor([2.0, 1.0])
    out = limit(wav, RATE, 0.8)
    assert torch.allclose(out[1], out[0] * 0.5, atol=1e-6)
    assert torch.allclose(out[:, : RATE // 2], wav[:, : RATE // 2], atol=1e-6)


def decode(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        stream = container.streams.audio[0]
        return np.concatenate(frames, axis=-1), stream


def test_wav_is_16_bit_and_exact_to_half_a_step(tmp_path):
    wav = noise(seconds=0.5)
    write(wav, tmp_path / "a.wav", RATE, "wav")
    samples, stream = decode(tmp_path / "a.wav")
    assert stream.codec_context.name == "pcm_s16le"
    assert stream.sample_rate == RATE
    back = samples.reshape(-1, 2).T / 32767
    assert np.abs(back - wav.clamp(-1, 1).numpy()).max() <= 0.51 / 32767


@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_is_320_kbit_and_decodes_to_the_same_length_and_sound(tmp_path, channels):
    wav = tone(seconds=2.0)[:channels]
    write(wav, tmp_path / "a.mp3", RATE, "mp3")
    samples, stream = decode(tmp_path / "a.mp3")
    assert stream.codec_context.name in ("mp3", "mp3float")
    assert stream.bit_rate == 320_000
    assert samples.shape == (channels, 2 * RATE)
    assert np.corrcoef(samples[0, 1000:-1000], wav[0, 1000:-1000])[0, 1] > 0.999


def most_at_once(seconds, folder, monkeypatch, patience):
    """How many of four writers level a clip at the same time; each waits for the others a while."""
    inside, most, all_here = [], [], threading.Barrier(4)

    def level(wav, rate):
        inside.append(wav)
        most.append(len(inside))
        with suppress(threading.BrokenBarrierError):
            all_here.wait(patience)
        inside.pop()
        return wav

    monkeypatch.setitem(STRATEGIES, "clip", level)
    monkeypatch.setattr(output, "LONG_SECONDS", 1.0)
    request = Request(normalization_strategy="clip", output_format="wav")
    generation = Generation(request, [tone(seconds=seconds)], RATE, "tones")

    def write_one(number):
        (folder / str(number)).mkdir()
        return write_clips(generation, folder / str(number), Timings())

    with ThreadPoolExecutor(4) as pool:
        files = [file for [file] in pool.map(write_one, range(4))]
    assert all(decode(file)[0].size == 2 * seconds * RATE for file in files)
    return max(most)


def test_long_clips_are_levelled_one_at_a_time(tmp_path, monkeypatch):
    """Otherwise the memory for levelling would add up over all callers."""
    for folder in ("short", "long"):
        (tmp_path / folder).mkdir()
    assert most_at_once(0.5, tmp_path / "short", monkeypatch, 600) == 4
    assert most_at_once(1.5, tmp_path / "long", monkeypatch, 0.5) == 1


def tones(clips=1, **fields):
    """A generation of `clips` clips of different pitch."""
    wavs = [tone(hertz=440.0 * (clip + 1)) for clip in range(clips)]
    return Generation(Request(**fields), wavs, RATE, "tones")


@pytest.mark.parametrize("suffix", ["mp3", "wav", "MP3"])
def test_save_takes_the_format_from_the_suffix_and_touches_no_other_file(tmp_path, suffix):
    others = {name: tmp_path / name for name in ("soul.wav", "soul.mp3", ".soul", "soul")}
    path = tmp_path / f"soul.{suffix}"
    for other in set(others.values()) - {path}:
        other.write_text("mine")
    assert save(tones(), path) == [path]
    codec = decode(path)[1].codec_context.name
    assert codec == ("pcm_s16le" if suffix == "wav" else "mp3float")
    for other in set(others.values()) - {path}:
        assert other.read_text() == "mine"
    assert set(tmp_path.iterdir()) == {*others.values(), path}


def test_save_normalizes_as_the_request_says(tmp_path):
    [file] = save(tones(normalization_strategy="rms"), tmp_path / "a.wav")
    level = np.sqrt(np.mean(np.square(decode(file)[0] / 32767.0)))
    assert 20 * np.log10(level) == pytest.approx(-18, abs=0.01)


def test_save_numbers_several_clips_and_makes_the_folder(tmp_path):
    files = save(tones(clips=3), str(tmp_path / "new" / "folder" / "soul.wav"))
    assert [file.name for file in files] == ["soul-0.wav", "soul-1.wav", "soul-2.wav"]
    for clip, file in enumerate(files):
        spectrum = np.abs(np.fft.rfft(decode(file)[0].reshape(-1, 2)[:RATE, 0]))
        assert spectrum.argmax() == 440 * (clip + 1)


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "soul.mp3"
    save(tones(), path)
    before = path.read_bytes()
    monkeypatch.setattr(output, "MP3_BITRATE", "x")  # ffmpeg refuses it
    with pytest.raises(OutputError, match="mp3 could not be written"):
        save(tones(clips=1, seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["soul", "soul.ogg", "soul.mp3.zip"])
def test_save_refuses_other_suffixes(tmp_path, name):
    with pytest.raises(InputError, match=r"not a known format. Use .wav or .mp3"):
        save(tones(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="mp3 could not be written"):
        write(tone(), tmp_path / "missing" / "a.mp3", RATE, "mp3")
