"""Sound files of every kind, whole or damaged, give music or an error that names the field."""

import random
import struct

import numpy as np
import psutil
import pytest
import soundfile
import sounds
from cog_client import data_uri, samples

SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]
RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000, 384000, 44101]
LENGTHS = [0, 1, 2, 100, 8000, 48000, 200_000]
MEMORY = 700e6  # bytes that the worker may need beyond its idle memory


def plain(rng, path):
    """wav of any rate, depth, length and number of channels."""
    wav = sounds.melody(rng.choice(LENGTHS) / 44100, 44100, 1)
    channels = rng.choice([1, 2, 3, 4, 6, 8, 12])
    rate, subtype = rng.choice(RATES), rng.choice(SUBTYPES)
    soundfile.write(path, np.repeat(wav, channels, 0).T, rate, subtype=subtype, format="WAV")


def encoded(rng, path):
    """Any compressed format, or a video."""
    wav = sounds.melody(rng.choice([0.1, 1.0, 3.0]), 48000, 2)
    extension = rng.choice([*sounds.CODECS, "video"])
    made = path.with_suffix(f".{'mp4' if extension == 'video' else extension}")
    if extension == "video":
        sounds.write_video(made, wav if rng.random() < 0.8 else None)
    else:
        sounds.write(made, wav, 48000)
    made.rename(path)


def unusual(rng, path):
    """Constant samples, among them NaN and infinity."""
    value = rng.choice([np.nan, np.inf, -np.inf, 1e30, 1e-40, 1.0, 0.0])
    wav = np.full(rng.choice([1, 5, 20_000]), value)
    soundfile.write(path, wav, 32000, subtype="DOUBLE", format="WAV")


def joined(rng, path):
    """Two streams of one format, of different rates and channels, one after the other."""
    suffix = rng.choice(["mp3", "aac", "ts", "ogg"])
    codec = ("-c:a", rng.choice(["libvorbis", "libopus"])) if suffix == "ogg" else ()
    parts = []
    other = 16000 if codec else 44100  # Opus has no 44.1 kHz
    for rate, channels in rng.sample([(48000, 2), (other, 1), (24000, 2), (48000, 1)], 2):
        part = path.with_suffix(f".{len(parts)}.{suffix}")
        sounds.stairs(part, *codec, "-ar", rate, "-ac", channels, seconds=rng.choice([1, 2]))
        parts.append(part)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def gapped(rng, path):
    """Timestamps with a gap, or that begin late or before zero."""
    begin, end = sorted(rng.choices([0, 0.3, 0.7, 1.5], k=2))
    kept = ("-af", f"aselect='not(between(t,{begin},{end}))'")
    suffix, codec = rng.choice([("webm", "libopus"), ("mka", "flac"), ("mp4", "aac")])
    made = path.with_suffix(f".{suffix}")
    shift = ("-output_ts_offset", rng.choice([-0.5, 0, 0.4, 100]))
    sounds.stairs(made, *kept, "-c:a", codec, *shift, seconds=2)
    made.rename(path)


def masked(rng, path):
    """A wav with any mask of speakers."""
    wav = sounds.melody(1.0, 32000, 1)
    channels, mask = rng.choice([1, 2, 3, 6, 8]), rng.getrandbits(32) & rng.getrandbits(32)
    soundfile.write(path, np.repeat(wav, channels, 0).T, 32000, subtype="FLOAT", format="WAVEX")
    content = bytearray(path.read_bytes())
    place = content.index(b"fmt ") + 28
    content[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 0xFFFFFFFF, mask]))
    path.write_bytes(content)


def noise(rng, path):
    """Bytes that are not audio, and playlists that name other files."""
    texts = [b"", b"\0" * 5000, rng.randbytes(5000), b"ID3" + rng.randbytes(500)]
    texts += [b"ffconcat version 1.0\nfile x.wav\n", b"#EXTM3U\n#EXTINF:2,\nfile:///etc/passwd\n"]
    texts += [
        b"fLaC" + rng.randbytes(500),
        b"OggS" + rng.randbytes(500),
        b"RIFF\xff\xff\xff\xffWAVE",
    ]
    path.write_bytes(rng.choice(texts))


def truncated(rng, data):
    return data[: rng.randrange(len(data) + 1)]


def flipped(rng, data):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 10, 200])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def lying(rng, data):
    """Four of the first hundred bytes, as a number, are replaced by an extreme."""
    changed = bytearray(data)
    start = rng.randrange(max(1, min(100, len(data) - 4)))
    changed[start : start + 4] = struct.pack("<I", rng.choice([0, 1, 0xFFFF, 2**31 - 1, 2**32 - 1]))
    return bytes(changed)


def whole(rng, data):
    return data


MAKERS = [plain, plain, encoded, encoded, unusual, noise, joined, gapped, masked]
# What these make is music, unless it is damaged.
PLAYABLE = ("joined", "gapped", "masked")
DAMAGES = [whole, truncated, flipped, lying]


def make(seed, folder):
    """The path of random file number `seed`."""
    rng = random.Random(seed)
    maker, damage = rng.choice(MAKERS), rng.choice(DAMAGES)
    path = folder / f"{seed}-{maker.__name__}-{damage.__name__}.wav"
    maker(rng, path)
    data = path.read_bytes()
    if data:
        path.write_bytes(damage(rng, data))
    return path


def check(server, folder, seeds):
    worker = psutil.Process(server.worker().pid)
    server.predict(duration=1)
    idle = worker.memory_info().rss
    answers = {"succeeded": 0, "failed": 0}
    for seed in seeds:
        path = make(seed, folder)
        continued = seed % 2 == 0
        inputs = {"continuation": continued, **({"continuation_end": 1} if continued else {})}
        answer = server.post(
            input_audio=data_uri(path), duration=2, output_format="wav", **inputs
        ).json()
        answers[answer["status"]] += 1
        if answer["status"] == "failed":
            assert not path.name.endswith(tuple(f"{kind}-whole.wav" for kind in PLAYABLE)), answer
            assert "InputError: input_audio=" in answer["error"], (path.name, answer)
        else:
            wav, rate = samples(answer["output"]["audio"])
            assert wav.shape == (2, 2 * rate), path.name
            assert np.isfinite(wav).all(), path.name
            assert abs(wav).max() > 0, path.name
        path.unlink()
        assert worker.memory_info().rss < idle + MEMORY, path.name
    assert min(answers.values()) > len(seeds) / 10, answers
    assert server.predict(duration=1)["status"] == "succeeded"


def test_fifty_files_give_music_or_an_error_that_names_the_field(predict_server, tmp_path):
    check(predict_server, tmp_path, range(50))


@pytest.mark.full
def test_a_thousand_files_give_music_or_an_error_that_names_the_field(predict_server, tmp_path):
    check(predict_server, tmp_path, range(1000))


@pytest.mark.full
def test_two_hours_of_input_take_bounded_memory(predict_server, tmp_path):
    """7,200 s of silence in 12 MB; the continuation begins near its end."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(7200 * 44100, np.int16), 44100)
    worker = psutil.Process(predict_server.worker().pid)
    predict_server.predict(duration=1)
    idle = worker.memory_info().rss
    predict_server.predict(
        input_audio=data_uri(path, "audio/flac"),
        continuation=True,
        continuation_start=7190,
        continuation_end=7191,
        duration=2,
    )
    assert worker.memory_info().rss < idle + MEMORY
