"""Files as people really send them: joined, with gaps, of many channels, loud, and hostile."""

import logging
import resource
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextvars import copy_context

import numpy as np
import pytest
import soundfile
import sounds
import torch
from sounds import ffmpeg, pitches, stairs

from benchmarks import hostile
from musicgen.audio import MAX_PEAK, load_slice
from musicgen.audio_file import LEAD_IN, SEEK_BEYOND, open_audio
from musicgen.errors import InputError
from musicgen.runtime import ffmpeg as child
from musicgen.runtime.cancellation import Cancellation, current

STAIRS = [300, 400, 500, 600]
BEGIN = int(SEEK_BEYOND + 2 * LEAD_IN)  # a second that is reached by a file's index


def load(path, start=0, end=None, *, channels=2, limit=30.0):
    return load_slice(path, start, end, sample_rate=32000, channels=channels, limit=limit)


def joined(path, *parts):
    """A file of these files' bytes, one after the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def stereo_and(folder, suffix, *options):
    """A stereo file at 44.1 kHz and one with other options, in the same format."""
    plain = stairs(folder / f"stereo.{suffix}", "-ac", 2)
    return plain, stairs(folder / f"other.{suffix}", *options)


@pytest.mark.parametrize("suffix", ["mp3", "aac"])
@pytest.mark.parametrize(
    "options",
    [("-ac", 1), ("-ar", 48000), ("-ac", 1, "-ar", 22050)],
    ids=["mono", "48 kHz", "22 kHz mono"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_joined_files_of_different_kinds_keep_pitch_and_time(tmp_path, suffix, options, order):
    path = joined(tmp_path / f"a.{suffix}", *stereo_and(tmp_path, suffix, *options)[::order])
    wav = load(path)
    assert pitches(wav[0]) == pitches(wav[1]) == STAIRS * 2
    assert pitches(load(path, 5, 7)[0]) == [400, 500]


def test_a_gap_in_the_timestamps_is_silence(tmp_path):
    dropped = ("-af", "aselect='not(between(t,1,3))'", "-c:a", "libopus")
    path = stairs(tmp_path / "a.webm", *dropped)
    assert pitches(load(path)[0]) == [300, 0, 0, 600]
    assert pitches(load(path, 3, 4)[0]) == [600]


def test_seconds_count_from_the_start_of_the_picture(tmp_path):
    sound = stairs(tmp_path / "a.wav")
    path = tmp_path / "late.mp4"
    picture = ("-f", "lavfi", "-i", "color=s=64x64:d=4", "-itsoffset", 1, "-i", sound)
    ffmpeg(*picture, "-map", 0, "-map", 1, "-c:v", "mpeg4", "-c:a", "aac", "-shortest", path)
    assert pitches(load(path)[0]) == [0, 300, 400, 500]
    assert pitches(load(path, 2, 3)[0]) == [400]


def test_a_chain_of_alike_streams_is_read_to_its_end(tmp_path):
    one = stairs(tmp_path / "one.ogg", "-c:a", "libvorbis")
    assert pitches(load(joined(tmp_path / "a.ogg", one, one))[0]) == STAIRS * 2


@pytest.mark.parametrize("codec", ["libvorbis", "libopus"])
def test_of_a_chain_that_cannot_be_read_on_the_beginning_is_used(tmp_path, codec, caplog):
    stereo = stairs(tmp_path / "one.ogg", "-c:a", codec)
    mono = stairs(tmp_path / "two.ogg", "-c:a", codec, "-ac", 1)
    with caplog.at_level(logging.WARNING, "musicgen"):
        assert pitches(load(joined(tmp_path / "a.ogg", stereo, mono))[0]) == STAIRS
    assert "'a.ogg': damaged" in caplog.text


def test_the_first_track_that_can_be_decoded_is_used(tmp_path):
    sound = stairs(tmp_path / "a.wav")
    path = tmp_path / "two.mka"
    ffmpeg("-i", sound, "-i", sound, "-map", 0, "-map", 1, "-c:a", "libopus", path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"A_OPUS", b"A_XPUS", 1))
    assert pitches(load(path)[0]) == STAIRS
    path.write_bytes(content.replace(b"A_OPUS", b"A_XPUS"))
    with pytest.raises(InputError, match="its audio format is unknown"):
        load(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_loud_surround_is_mixed_within_full_scale(tmp_path, channels, caplog):
    loud = "|".join("0" if speaker == 3 else "0.96*sin(880*PI*t)" for speaker in range(6))
    path = tmp_path / "a.wav"
    ffmpeg("-f", "lavfi", "-i", f"aevalsrc='{loud}':c=5.1:d=1:s=48000", path)
    with caplog.at_level(logging.INFO, "musicgen"):
        wav = load(path, channels=channels)
    assert float(wav.abs().max()) == pytest.approx(1, abs=0.01)
    assert "scaled from a peak of 2.3" in caplog.text


@pytest.mark.parametrize("peak", [1.5, 4.0, MAX_PEAK])
def test_a_float_file_above_full_scale_is_scaled_down_to_it(tmp_path, peak, caplog):
    wave = np.sin(np.arange(32000) / 10) * peak
    soundfile.write(tmp_path / "a.wav", wave, 32000, subtype="FLOAT")
    with caplog.at_level(logging.INFO, "musicgen"):
        wav = load(tmp_path / "a.wav", channels=1)
    assert torch.allclose(wav[0], torch.from_numpy(wave / np.abs(wave).max()).float(), atol=1e-4)
    assert f"scaled from a peak of {peak:.2f}" in caplog.text


@pytest.mark.parametrize("peak", [13_000, 2e9, 1e30])
def test_integers_stored_as_floats_are_refused(tmp_path, peak):
    wave = np.sin(np.arange(32000) / 10) * peak
    soundfile.write(tmp_path / "a.wav", wave, 32000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"samples reach .*full scale of a float file is 1"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [3, 7, 9, 11, 20, 32, 60])
def test_any_number_of_channels_is_mixed(tmp_path, channels):
    wave = np.zeros((32000, channels), np.float32)
    wave[:, 0] = 0.5 * np.sin(2 * np.pi * 500 * np.arange(32000) / 32000)
    soundfile.write(tmp_path / "a.wav", wave, 32000)
    for wanted in (1, 2):
        wav = load(tmp_path / "a.wav", channels=wanted)
        assert wav.shape == (wanted, 32000)
        assert pitches(wav[0]) == [500]


@pytest.mark.parametrize("mask", [0x0, 0x3, 0x5, 0x30, 0xC0, 0x600, 0x80000000, 0xFFFFFFFF])
def test_stereo_with_any_speaker_mask_keeps_left_and_right(tmp_path, mask):
    path = stairs(tmp_path / "a.wav", "-f", "wav", "-c:a", "pcm_f32le", "-ac", 2, seconds=1)
    samples, rate = soundfile.read(path)
    samples[:, 1] = 0
    content = np.ascontiguousarray(samples, np.float32).tobytes()
    guid = bytes.fromhex("0300000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 2, rate, 8 * rate, 8, 32, 22, 32, mask) + guid
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(content)) + content
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    wav = load(path)
    assert pitches(wav[0]) == [300]
    assert not wav[1].any()


def test_channels_in_opposite_phase_do_not_cancel_out(tmp_path, caplog):
    path = stairs(tmp_path / "a.wav", "-af", "pan=stereo|c0=c0|c1=-0.9*c1")
    with caplog.at_level(logging.INFO, "musicgen"):
        wav = load(path, channels=1)
    assert pitches(wav[0]) == STAIRS
    assert float(wav.abs().max()) == pytest.approx(0.4, abs=0.02)
    assert "opposite phase" in caplog.text


# suffix -> ffmpeg's options
SENT = {
    "aif": ("-c:a", "pcm_s24be"),
    "aifc": ("-c:a", "pcm_s16le", "-f", "aiff"),
    "caf": ("-c:a", "alac"),
    "m4a": ("-c:a", "alac"),
    "3gp": ("-c:a", "libopencore_amrnb", "-ar", 8000, "-ac", 1, "-b:a", "12.2k"),
    "wma": (),
    "ac3": (),
    "eac3": (),
    "wv": (),
    "tta": (),
    "au": (),
    "mp2": (),
    "w64": (),
    "rf64.wav": ("-rf64", "always"),
    "bwf.wav": ("-write_bext", 1, "-metadata", "description=take"),
    "mulaw.wav": ("-c:a", "pcm_mulaw"),
    "adpcm.wav": ("-c:a", "adpcm_ima_wav"),
    "f64.wav": ("-c:a", "pcm_f64le"),
    "s24.wav": ("-c:a", "pcm_s24le"),
    "mp3.wav": ("-c:a", "libmp3lame", "-f", "wav"),
    "flac.ogg": ("-c:a", "flac"),
    "mka": ("-c:a", "flac"),
    "ts": ("-c:a", "aac"),
    "flv": ("-c:a", "aac"),
    "frag.mp4": ("-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"),
    "browser.webm": ("-c:a", "libopus", "-live", 1),
}


@pytest.mark.parametrize("suffix", SENT)
def test_formats_that_people_send_are_read(tmp_path, suffix):
    options = SENT[suffix]
    encoders = subprocess.run(
        [sounds.imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-encoders"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "libopencore_amrnb" in options and "libopencore_amrnb" not in encoders:
        options = ("-c:a", "aac")
    path = stairs(tmp_path / f"a.{suffix}", *options)
    wav = load(path)
    assert pitches(wav[0])[:4] == STAIRS
    assert wav.shape[1] == pytest.approx(4 * 32000, abs=6400)


def audio_specific_config(*fields):
    """Five bytes of the MPEG-4 configuration with these (value, bits), padded with zeros."""
    text = "".join(f"{value:0{size}b}" for value, size in fields)
    return int(text.ljust(40, "0"), 2).to_bytes(5, "big")


@pytest.mark.parametrize(("object_type", "channels"), [(5, 1), (5, 2), (29, 1)])
def test_he_aac_has_twice_the_rate_of_its_core(tmp_path, object_type, channels):
    """HE-AAC (5, spectral band replication) and HE-AAC v2 (29, parametric stereo too).

    ffmpeg has no encoder for them, so AAC-LC at 22,050 Hz is labelled as their core. The decoder
    then doubles the rate.
    """
    path = stairs(tmp_path / "a.m4a", "-ar", 22050, "-ac", channels)
    content = path.read_bytes()
    core = ((7, 4), (channels, 4))  # 22,050 Hz
    plain = audio_specific_config((2, 5), *core, (0, 3), (0x2B7, 11), (5, 5), (0, 1))
    labelled = audio_specific_config((object_type, 5), *core, (4, 4), (2, 5))  # 4: 44,100 Hz
    assert content.count(plain) == 1
    path.write_bytes(content.replace(plain, labelled))
    with open_audio(path) as file:
        assert file.rate == 44100
    wav = load(path)
    assert wav.shape[1] == pytest.approx(4 * 32000, abs=3200)
    assert pitches(wav[0]) == pitches(wav[1]) == STAIRS


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 10**9])
def test_a_wav_whose_size_is_wrong_is_read(tmp_path, size):
    path = stairs(tmp_path / "a.wav")
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + struct.pack("<I", size) + content[at + 4 :])
    assert pitches(load(path)[0]) == STAIRS


@pytest.fixture(scope="module")
def long_stairs(tmp_path_factory):
    """A file that goes on for 6 s behind the second that the tests jump to."""
    return stairs(tmp_path_factory.mktemp("long") / "a.wav", seconds=BEGIN + 6)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "m4a", "ogg", "webm", "mp4"])
def test_a_jump_by_the_index_gives_the_samples_of_decoding_from_the_start(
    tmp_path, long_stairs, suffix
):
    codec = {"webm": ("-c:a", "libopus"), "mp4": ("-c:a", "aac")}.get(suffix, ())
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", long_stairs, *codec, path)
    whole = load(path, limit=BEGIN + 10)
    after = load(path, BEGIN, BEGIN + 3)
    before = whole[:, BEGIN * 32000 : (BEGIN + 3) * 32000]
    # Resampling begins anew at the slice, so not at its edges.
    assert float((after - before)[:, 1000:-1000].abs().max()) < 1e-4


def test_a_start_behind_the_end_of_a_long_file_is_named(tmp_path):
    path = stairs(tmp_path / "a.mp3", seconds=80, channels=1)
    with pytest.raises(InputError, match=r"continuation_start=90: .*80.0\d s long"):
        load(path, 90)
    with pytest.raises(InputError, match=r"continuation_start=1000000000: .*80.0\d s long"):
        load(path, 10**9)


# Hostile files


READ = """
import os, resource, sys
from pathlib import Path
from musicgen.audio import load_slice
from musicgen.errors import InputError
for file in sys.argv[1:]:
    if os.fork():  # each file has a process of its own; all of them import once
        assert os.wait()[1] == 0
        continue
    try:
        load_slice(Path(file), 0, None, sample_rate=32000, channels=2, limit=30)
    except InputError as exc:
        assert "input_audio" in str(exc)
    print(max(resource.getrusage(who).ru_maxrss // 1024 for who in
          (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)), flush=True)
    break
"""


@pytest.fixture(scope="module")
def megabytes(tmp_path_factory):
    """Kind of file -> peak memory of the process that reads it, or of its child that decodes."""
    folder = tmp_path_factory.mktemp("files")
    files = {kind: make(folder) for kind, make in hostile.FILES.items()}
    assert all(path.stat().st_size < 2**20 for path in files.values())
    files["plain"] = stairs(folder / "plain.wav")
    command = [sys.executable, "-c", READ, *files.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(files, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("kind", hostile.FILES)
def test_a_small_file_takes_little_memory(megabytes, kind):
    assert megabytes[kind] < megabytes["plain"] + child.MEMORY_BYTES / 2**20 + 100


def repeated(path):
    """A file of 200 times these bytes. Decoding takes much longer than making it."""
    path.write_bytes(path.read_bytes() * 200)
    return path


@pytest.fixture(scope="module")
def silence(tmp_path_factory):
    """A flac without an index, which takes seconds to decode."""
    return repeated(hostile.silence(tmp_path_factory.mktemp("silence"), seconds=100))


@pytest.fixture(scope="module")
def joined_silence(tmp_path_factory):
    """The same in aac, of which ffmpeg writes not even a header before the slice."""
    path = tmp_path_factory.mktemp("silence") / "silence.aac"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=44100:cl=mono", "-t", 100, path)
    return repeated(path)


@pytest.mark.parametrize("file", ["silence", "joined_silence"])
def test_processor_time_before_the_slice_is_bounded(file, monkeypatch, request):
    file = request.getfixturevalue(file)
    monkeypatch.setattr(child, "CPU_SECONDS", 1)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(
        InputError, match=rf"input_audio='{file.name}': decoding it took more than 1 s"
    ):
        load(file, 10**9)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 6


def test_a_cancel_ends_decoding_at_once(silence):
    cancellation, outcome = Cancellation(), []

    def read():
        current.set(cancellation)
        try:
            load(silence, 10**9)
        except CancelledError:
            outcome.append("cancelled")

    thread = threading.Thread(target=copy_context().run, args=[read])
    thread.start()
    while not children():
        time.sleep(0.01)
    cancellation.cancel()
    thread.join()
    assert outcome == ["cancelled"]
    assert not children()


def children():
    """Running ffmpeg processes of this one."""
    import psutil

    return [one for one in psutil.Process().children() if "ffmpeg" in " ".join(one.cmdline())]


def test_a_picture_beside_the_sound_is_not_damage(tmp_path, caplog):
    """ffmpeg complains about each codec that may not be used, with a list of all that may."""
    path = sounds.write_video(tmp_path / "a.mp4", sounds.melody(2.0, 48000, 2))
    with_cover = tmp_path / "b.mkv"
    videos = [word for _ in range(9) for word in ("-map", "0:v")]
    ffmpeg("-i", path, *videos, "-map", "0:a", "-c", "copy", with_cover)
    with caplog.at_level(logging.WARNING, "musicgen"):
        for file in (path, with_cover):
            load(file)
    assert caplog.text == ""


def test_a_name_cannot_write_a_line_of_its_own_into_the_log(tmp_path, caplog):
    path = stairs(tmp_path / 'a\n{"level"}\x1b[31m.mp3')
    content = path.read_bytes()
    path.write_bytes(content[:9000] + bytes(2000) + content[11000:] + b"\xff\xfb" * 50)
    with caplog.at_level(logging.WARNING, "musicgen"):
        load(path)
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert "\x1b" not in record.getMessage()
