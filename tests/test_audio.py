"""Any uploaded file becomes the right wav, or one error that says what is wrong with it."""

import logging
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import sounds
import torch

from musicgen.audio import load_slice
from musicgen.audio_file import AudioFile
from musicgen.errors import InputError


def load(path, start=0, end=None, *, sample_rate=32000, channels=2, limit=30.0):
    return load_slice(path, start, end, sample_rate=sample_rate, channels=channels, limit=limit)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extension", sounds.CODECS)
def test_every_format_decodes_to_the_same_melody(tmp_path, extension, channels):
    rate = sounds.RATES[extension]
    path = sounds.write(tmp_path / f"a.{extension}", sounds.melody(2.0, rate, channels))
    wav = load(path)
    reference = torch.from_numpy(sounds.melody(2.0, 32000))
    assert wav.dtype == torch.float32
    assert wav.shape[0] == 2
    assert wav.shape[1] == pytest.approx(2 * 32000, abs=0.05 * 32000)
    length = min(wav.shape[1], reference.shape[1])
    # Lossy codecs may start some milliseconds late: compare spectra, not samples.
    spectra = [torch.fft.rfft(x[0, :length]).abs() for x in (wav, reference)]
    assert float(torch.corrcoef(torch.stack(spectra))[0, 1]) > 0.98


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_of_any_rate_and_depth(tmp_path, rate, subtype):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype=subtype)
    wav = load(tmp_path / "a.wav", channels=1)
    assert wav.shape == (1, 32000)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(32000) / 32000) * 0.5
    # Not at the edges, where a resampler lacks samples on one side.
    assert float((wav[0] - expected)[500:-500].abs().max()) < 2e-3


def test_surround_keeps_its_centre(tmp_path):
    """Keeping the first two channels of 5.1 would lose the vocals."""
    wav = np.zeros((6, 48000), np.float32)
    wav[2] = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000) * 0.5
    soundfile.write(tmp_path / "a.wav", wav.T, 48000)
    mixed = load(tmp_path / "a.wav")
    assert float(mixed[0].abs().max()) > 0.2
    assert torch.allclose(mixed[0], mixed[1])


def test_channels_mean_to_mono_and_copy_to_stereo(tmp_path):
    wav = np.stack([np.full(32000, 0.5), np.full(32000, -0.1)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", wav, 32000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", wav[:, 0], 32000, subtype="FLOAT")
    assert torch.allclose(load(tmp_path / "stereo.wav", channels=1), torch.tensor(0.2))
    assert torch.equal(load(tmp_path / "mono.wav"), torch.full((2, 32000), 0.5))


@pytest.fixture
def ramp(tmp_path):
    """10 s in which the sample value is the time: second t has value t / 10."""
    soundfile.write(tmp_path / "ramp.wav", np.arange(320000) / 320000, 32000, subtype="FLOAT")
    return tmp_path / "ramp.wav"


@pytest.mark.parametrize(
    ("start", "end", "limit", "expected"),
    [
        (0, None, 30, (0, 10)),
        (2, 5, 30, (2, 5)),
        (2, None, 30, (2, 10)),
        (2, None, 3, (2, 5)),
        (2, 9, 3, (2, 5)),
        (9, 10, 30, (9, 10)),
        (3, 99, 30, (3, 10)),
    ],
)
def test_slices(ramp, start, end, limit, expected):
    wav = load(ramp, start, end, channels=1, limit=limit)
    assert wav.shape[1] == (expected[1] - expected[0]) * 32000
    assert float(wav[0, 0]) == pytest.approx(expected[0] / 10, abs=1e-6)
    assert float(wav[0, -1]) == pytest.approx(expected[1] / 10, abs=1e-4)


def test_end_past_the_file_means_its_end_and_is_logged(ramp, caplog):
    with caplog.at_level(logging.INFO, "musicgen"):
        load(ramp, 3, 99)
    assert "continuation_end=99 is past the end" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "musicgen"):
        load(ramp, 3, 10)
        load(ramp, 3, None, limit=2)
    assert caplog.text == ""


@pytest.mark.parametrize("start", [10, 11])
def test_start_past_the_file_is_an_error(ramp, start):
    with pytest.raises(InputError, match=r"continuation_start=1\d: .*10.00 s long.*below 10.00"):
        load(ramp, start)


def test_sound_of_a_video_is_used(tmp_path):
    path = sounds.write_video(tmp_path / "a.mp4", sounds.melody(2.0, 48000))
    assert load(path).shape[1] == pytest.approx(2 * 32000, abs=3200)


def test_a_long_file_is_read_only_as_far_as_needed(tmp_path, monkeypatch):
    path = sounds.write(tmp_path / "a.mp3", np.tile(sounds.melody(20.0), 6))
    seen = []
    original = AudioFile.blocks
    monkeypatch.setattr(
        AudioFile, "blocks", lambda self: (seen.append(len(b)) or b for b in original(self))
    )
    assert load(path, limit=5).shape == (2, 5 * 32000)
    assert sum(seen) < 6 * 44100


def test_one_sample_is_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5]), 32000, subtype="FLOAT")
    assert load(tmp_path / "a.wav", channels=1).tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.wav", b"", "cannot be read as audio"),
        ("text.mp3", b"not audio at all " * 100, "cannot be read as audio"),
        ("noise.flac", bytes(range(256)) * 40, "cannot be read as audio"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "cannot be read as audio"),
    ],
)
def test_files_that_are_not_audio_are_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"input_audio='{name}': {problem}.*Send an audio file"):
        load(tmp_path / name)


def test_pictures_and_videos_without_sound_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read as audio"):
        load(sounds.write_picture(tmp_path / "a.png"))
    with pytest.raises(InputError, match="holds no audio"):
        load(sounds.write_video(tmp_path / "a.mp4", None))


PLAYLISTS = {
    "list.ffconcat": "ffconcat version 1.0\nfile other.wav\n",
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nother.wav\n#EXT-X-ENDLIST\n",
    "list.wav": "ffconcat version 1.0\nfile other.wav\n",
    "remote.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nhttp://127.0.0.1:9/a.ts\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_not_followed(tmp_path, name):
    soundfile.write(tmp_path / "other.wav", np.zeros(32000), 32000)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(InputError, match="cannot be read as audio"):
        load(tmp_path / name)


@pytest.mark.parametrize("rate", [44101, 48001, 767_999])
def test_an_unusual_rate_takes_no_more_memory(tmp_path, rate):
    """julius' filter from 48,001 Hz would take 6 GB."""
    wav = sounds.melody(1.0, rate, 1)
    soundfile.write(tmp_path / "a.wav", wav.T, rate, subtype="FLOAT")
    heard = load(tmp_path / "a.wav", channels=1)
    error = heard[:, :32000] - torch.from_numpy(sounds.melody(1.0, 32000, 1))
    assert float(error.std()) < 0.02  # the melody's notes begin up to one sample later


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1, 2**32 - 1])
def test_a_header_with_an_impossible_rate_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(3200), 32000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = struct.pack("<I", rate)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError, match="input_audio"):
        load(tmp_path / "a.wav")


def test_audio_before_the_slice_is_not_kept_in_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(8000 * 3600), 8000)
    tracemalloc.start()  # numpy's memory too
    try:
        assert load(tmp_path / "a.flac", 3590, 3592, channels=1).shape == (1, 64000)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_tags_in_another_encoding_do_not_matter(tmp_path):
    path = sounds.write(tmp_path / "a.mp3", sounds.melody(1.0))
    title = b"Caf\xe9 cr\xe8me"  # Latin-1 that claims to be UTF-8
    frame = b"TIT2" + (len(title) + 1).to_bytes(4, "big") + b"\0\0\3" + title
    path.write_bytes(b"ID3\4\0\0\0\0\0" + bytes([len(frame)]) + frame + path.read_bytes())
    assert load(path).shape[1] == pytest.approx(32000, abs=3200)


def test_an_unknown_codec_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(3200), 32000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[20:22] = b"\x99\x99"
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError, match="its audio format is unknown"):
        load(tmp_path / "a.wav")


def test_file_without_samples_and_nan_are_errors(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 32000)
    with pytest.raises(InputError, match="holds no audio"):
        load(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 32000, subtype="FLOAT")
    with pytest.raises(InputError, match="NaN"):
        load(tmp_path / "nan.wav")


def test_an_error_does_not_reveal_paths_of_the_server(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "missing.wav")
    assert str(tmp_path) not in str(caught.value)
