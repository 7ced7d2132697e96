"""Files say that they are AI-generated and how to make them again; their sound stays the same."""

import hashlib
import json
import re
import subprocess
from dataclasses import fields

import av
import imageio_ffmpeg
import pytest
import soundfile
import sounds
import torch
from tags import read_by_others
from tinytag import TinyTag

from musicgen import __version__, audio_file, provenance
from musicgen.errors import InputError, MusicGenError
from musicgen.generation import Generation
from musicgen.output import save
from musicgen.provenance import CONTINUED, GENERATED, MAX_OBJECT_RECORD, MAX_WORDS
from musicgen.request import MAX_PROMPT, Request
from musicgen.runtime import ffmpeg

RATE = 32000
SECRET = "a prompt; with = and # and \\ and\na line, ü 🎵"


def generation(clips=1, model="tones", **asked):
    """Clips of different pitch, as a request with `asked` would give them."""
    time = torch.arange(RATE) / RATE
    tones = [torch.sin(2 * torch.pi * 440 * (n + 1) * time).repeat(2, 1) for n in range(clips)]
    return Generation(Request(duration=1, clips=clips, **asked), tones, RATE, model)


@pytest.fixture(params=["mp3", "wav"])
def suffix(request):
    return request.param


def test_another_program_reads_the_values(tmp_path, suffix):
    asked = {"seed": 7, "top_k": 50, "temperature": 0.5, "normalization_strategy": "rms"}
    [file] = save(generation(prompt=SECRET, **asked), tmp_path / f"a.{suffix}")
    found = read_by_others(file.read_bytes())
    assert found.words == (
        f"AI-generated (trainedAlgorithmicMedia) by musicgen {__version__}; model tones; seed 7; "
        f"duration 1; output_format {suffix}; normalization_strategy rms; top_k 50; temperature 0.5"
    )
    assert found.software == f"musicgen {__version__}"
    assert found.source == GENERATED
    assert found.facts == {
        "software": found.software,
        "model": "tones",
        "inputs": {"duration": 1, "output_format": suffix, **asked},
        "needs": ["prompt"],
        "digital_source_type": GENERATED,
    }


def test_a_wav_has_the_values_where_daws_look(tmp_path):
    """In the bext chunk of Broadcast Wave; its date and time are empty."""
    [file] = save(generation(seed=7), tmp_path / "a.wav")
    content = file.read_bytes()
    start = content.index(b"bext") + 8
    description, originator = content[start : start + 256], content[start + 256 : start + 288]
    assert description.rstrip(b"\0").decode() == read_by_others(file.read_bytes()).words
    assert originator.rstrip(b"\0").decode() == f"musicgen {__version__}"
    assert content[start + 320 : start + 346].strip(b"\0") == b""


def test_an_mp3_has_id3_version_2_4(tmp_path):
    [file] = save(generation(), tmp_path / "a.mp3")
    assert file.read_bytes()[:4] == b"ID3\x04"


def test_a_continuation_is_a_composite_with_generated_sound(tmp_path, suffix, tune):
    made = generation(input_audio=tune, continuation=True, continuation_end=1)
    [file] = save(made, tmp_path / f"a.{suffix}")
    found = read_by_others(file.read_bytes())
    assert found.source == CONTINUED
    assert found.inputs["continuation"] is True
    assert found.inputs["continuation_end"] == 1
    assert found.facts["needs"] == ["input_audio"]


def test_a_precision_that_is_not_exact_is_written(tmp_path, suffix):
    made = generation()
    fast = Generation(made.request, made.wavs, RATE, "tones", precision="fast")
    assert made.precision == provenance.EXACT
    [file] = save(fast, tmp_path / f"a.{suffix}")
    assert read_by_others(file.read_bytes()).facts["precision"] == "fast"
    assert "precision fast" in read_by_others(file.read_bytes()).words
    assert provenance.read(file).precision == "fast"


def test_each_clip_has_its_own_seed(tmp_path, suffix):
    files = save(generation(clips=3, seed=2**32 - 2), tmp_path / f"a.{suffix}")
    seeds = [read_by_others(file.read_bytes()).inputs["seed"] for file in files]
    assert seeds == [2**32 - 2, 2**32 - 1, 0]


def test_every_field_of_a_request_is_handled():
    handled = {*provenance.INPUTS, "input_audio", "clips"}
    assert handled == {field.name for field in fields(Request)}


def test_neither_prompt_nor_the_name_of_an_input_is_written(tmp_path, suffix, tune):
    made = generation(prompt="confidential", input_audio=tune)
    [file] = save(made, tmp_path / f"a.{suffix}")
    assert b"confidential" not in file.read_bytes()
    assert tune.stem.encode() not in file.read_bytes()
    assert read_by_others(file.read_bytes()).facts["needs"] == ["prompt", "input_audio"]


@pytest.mark.parametrize("prompt", [SECRET, "🎵" * MAX_PROMPT, "\0", "\udc80", "{}" * 4000])
def test_full_tags_have_the_prompt(tmp_path, suffix, prompt):
    [file] = save(generation(prompt=prompt), tmp_path / f"a.{suffix}", tags="full")
    found = read_by_others(file.read_bytes())
    assert found.inputs["prompt"] == prompt
    assert found.facts["needs"] == []
    assert provenance.read(file).inputs["prompt"] == prompt
    assert prompt not in found.words


def test_tags_that_are_off_leave_the_file_as_it_was(tmp_path):
    """A wav file then has the shortest header; no tag of an mp3 names this program."""
    [wav] = save(generation(), tmp_path / "a.wav", tags="off")
    assert wav.stat().st_size == 44 + 2 * 2 * RATE
    [mp3] = save(generation(), tmp_path / "a.mp3", tags="off")
    assert TinyTag.get(mp3).as_dict().keys().isdisjoint({"_comment", "encoded_by", "musicgen"})
    assert provenance.read(wav) is None
    assert provenance.read(mp3) is None


def test_the_same_request_gives_the_same_bytes(tmp_path, suffix):
    for level in provenance.LEVELS:
        files = [
            save(
                generation(prompt="x", seed=7, top_p=0.9),
                tmp_path / name / f"a.{suffix}",
                tags=level,
            )
            for name in ("one", "two")
        ]
        assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_tags_do_not_change_the_sound(tmp_path, suffix):
    hashes = set()
    for level in provenance.LEVELS:
        [file] = save(generation(prompt=SECRET), tmp_path / f"{level}.{suffix}", tags=level)
        samples, rate = soundfile.read(file, dtype="int16")
        assert (samples.shape, rate) == ((RATE, 2), RATE)
        hashes.add(hashlib.sha256(samples.tobytes()).hexdigest())
    assert len(hashes) == 1


def test_the_frames_of_an_mp3_and_its_gapless_header_do_not_change(tmp_path):
    """All bytes after the ID3 tag are equal; the first frame has the start and end of the music."""
    frames = set()
    for level in provenance.LEVELS:
        [file] = save(generation(prompt=SECRET), tmp_path / f"{level}.mp3", tags=level)
        content = file.read_bytes()
        size = 0
        for byte in content[6:10]:  # seven bits each
            size = size << 7 | byte
        frames.add(content[10 + size :])
        with av.open(str(file)) as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) == RATE
    [content] = frames
    assert b"Info" in content[:64]


def test_a_long_line_is_cut_for_the_description_and_its_values_are_kept(tmp_path, suffix):
    made = generation(model="é" * 200)
    [file] = save(made, tmp_path / f"a.{suffix}")
    found = read_by_others(file.read_bytes())
    assert len(found.words) == MAX_WORDS
    assert found.facts["model"] == "é" * 200


def test_whole_numbers_are_written_alike(tmp_path):
    """The API sends 3, a command line 3.0: the files must be equal."""
    contents = set()
    for value in (3, 3.0):
        made = generation(seed=1, temperature=value, classifier_free_guidance=value + 1)
        contents.add(save(made, tmp_path / "a.wav")[0].read_bytes())
    assert len(contents) == 1


def test_a_level_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tags='fulll': not a known level. Use one of standard"):
        save(generation(), tmp_path / "a.wav", tags="fulll")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_chooses_the_level():
    assert provenance.configured({}) == provenance.configured({"MUSICGEN_TAGS": ""}) == "standard"
    assert provenance.configured({"MUSICGEN_TAGS": "off"}) == "off"
    with pytest.raises(MusicGenError, match="MUSICGEN_TAGS='On': set one of standard, full, off"):
        provenance.configured({"MUSICGEN_TAGS": "On"})


def test_a_prompt_too_long_for_an_object_is_left_out():
    short, long = "lofi", "x" * MAX_OBJECT_RECORD
    assert short in provenance.object_metadata(generation(prompt=short), "full")["musicgen"]
    found = provenance.object_metadata(generation(prompt=long), "full")
    assert json.loads(found["musicgen"])["needs"] == ["prompt"]
    assert provenance.object_metadata(generation(), "off") == {}


# --- reading files of strangers ---------------------------------------------------------------


def tagged(path, record):
    """A short audio file whose tags hold any record."""
    source = sounds.write(path.with_name("source.wav"), sounds.melody(0.5, RATE), RATE)
    name = "ISBJ" if path.suffix == ".wav" else "musicgen"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", source]
    subprocess.run([*command, "-metadata", f"{name}={record}", path], check=True)
    return path


GOOD = {"software": "s", "model": "m", "digital_source_type": "d", "inputs": {}, "needs": []}


@pytest.mark.parametrize(
    "record",
    [
        "",
        "AI",
        "[]",
        "{}",
        "7",
        "[" * 100_000,
        "1" * 10_000,
        json.dumps(GOOD | {"inputs": 3}),
        json.dumps(GOOD | {"inputs": {"seed": [1]}}),
        json.dumps(GOOD | {"needs": 3}),
        json.dumps(GOOD | {"needs": [{}]}),
        json.dumps(GOOD | {"model": None}),
    ],
    ids=lambda record: record[-30:],
)
def test_tags_that_are_not_ours_are_none(tmp_path, suffix, record):
    assert provenance.read(tagged(tmp_path / f"a.{suffix}", record)) is None


@pytest.mark.parametrize("inputs", [{"input_audio": "@/etc/passwd"}, {"key": "x"}, {"song_id": 1}])
def test_tags_cannot_name_a_file_or_an_upload(tmp_path, suffix, inputs):
    path = tagged(tmp_path / f"a.{suffix}", json.dumps(GOOD | {"inputs": inputs}))
    with pytest.raises(InputError, match=f"have the input '{next(iter(inputs))}'"):
        provenance.read(path)


def test_only_the_beginning_of_large_tags_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg, "CHUNK", 1000)
    monkeypatch.setattr(audio_file, "METADATA_BYTES", 2000)
    record = json.dumps(GOOD | {"more": "x" * 50_000})
    assert provenance.read(tagged(tmp_path / "a.mp3", record)) is None
    monkeypatch.undo()
    assert provenance.read(tmp_path / "a.mp3") is not None


@pytest.mark.parametrize("content", [b"", b"text", b"#EXTM3U\nfile:/etc/passwd\n"])
def test_a_file_that_is_not_audio_is_refused(tmp_path, content):
    path = tmp_path / "a.mp3"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape("file='a.mp3': cannot be read as audio")):
        provenance.read(path)
