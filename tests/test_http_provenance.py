"""Tags of the files that both predictors send; a prediction can be made again from a file."""

import json
import os
from contextlib import ExitStack, contextmanager

import pytest
from cog_client import content, data_uri
from tags import read_by_others

from musicgen.commands import again, cli, server
from musicgen.provenance import CONTINUED, GENERATED

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"
MORE = {"duration": 1, "seed": 7, "top_k": 50, "temperature": 0.8, "normalization_strategy": "rms"}
FORMATS = pytest.mark.parametrize("output_format", ["mp3", "wav"])


@pytest.fixture
def files(request):
    """(predictor, inputs) -> contents of the files of a prediction."""

    def predict(predictor, **inputs):
        output = request.getfixturevalue(f"{predictor}_server").predict(**inputs)["output"]
        clips = [output["audio"]] if predictor == "predict" else output
        return [content(clip)[1] for clip in clips]

    return predict


@FORMATS
@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_files_say_how_they_were_made_and_are_the_same_twice(
    files, predictor, output_format, served_model
):
    inputs = {"prompt": PROMPT, "output_format": output_format, **MORE}
    first, second = (files(predictor, **inputs) for _ in range(2))
    assert first == second
    for clip, raw in enumerate(first):
        found = read_by_others(raw)
        assert found.words.startswith("AI-generated (trainedAlgorithmicMedia) by musicgen ")
        assert found.source == GENERATED
        assert found.facts["model"] == served_model
        assert found.facts["needs"] == ["prompt"]
        assert found.inputs == {**MORE, "seed": 7 + clip, "output_format": output_format}
        assert b"lofi" not in raw


@FORMATS
def test_a_clip_of_songstarter_is_the_file_of_predict(files, output_format):
    inputs = {"prompt": PROMPT, "output_format": output_format, **MORE}
    clips = files("songstarter", **inputs)
    [alone] = files("predict", **inputs | {"seed": 9})
    assert clips[2] == alone


# --- scripts/predict --from ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept_running(tmp_path_factory, checkpoints, predict_server, songstarter_server):
    """`server.running`, but a server runs until the end of the module for all equal calls.

    The servers that run already serve the calls that would start the same.
    """
    start, weights = server.running, str(checkpoints["stereo-melody"])
    urls = {
        ("predict", weights, "standard"): predict_server.url,
        ("songstarter", weights, "standard"): songstarter_server.url,
    }
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path_factory.mktemp("again") / "log").open("w"))

        @contextmanager
        def running(predictor, _, environment):
            variables = {**os.environ, **(environment or {})}
            tags = variables.get("MUSICGEN_TAGS", "standard")
            key = (predictor, variables["MUSICGEN_WEIGHTS"], tags)
            if key not in urls:
                urls[key] = stack.enter_context(start(predictor, log, environment))
            yield urls[key]

        yield running


@pytest.fixture
def run_again(kept_running, checkpoints, monkeypatch, tmp_path, capsys):
    """(arguments) -> (copy, output, messages) of scripts/predict, run in this process."""
    monkeypatch.setattr(server, "running", kept_running)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSICGEN_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments):
        monkeypatch.setenv("MUSICGEN_WEIGHTS", str(checkpoints["stereo-melody"]))
        cli.predict(list(arguments))
        done = capsys.readouterr()
        output = json.loads(done.out)
        copy = output[0] if isinstance(output, list) else output["audio"]
        return (tmp_path / copy).read_bytes(), output, done.err

    return run


KINDS = {
    "text": ({"prompt": PROMPT}, [f"prompt={PROMPT}"]),
    "neither": ({}, []),
    "melody": ({"prompt": PROMPT, "input_audio": 1}, [f"prompt={PROMPT}", "input_audio=@tune.wav"]),
    "continuation": (
        {"input_audio": 1, "continuation": True, "continuation_end": 1, "duration": 2},
        ["input_audio=@tune.wav"],
    ),
}


@pytest.mark.parametrize(
    ("kind", "output_format"),
    [
        pytest.param("text", "mp3", marks=pytest.mark.full),  # one clip of four has a prompt too
        pytest.param("neither", "wav", marks=pytest.mark.full),  # what differs has neither too
        ("melody", "mp3"),
        ("continuation", "wav"),
    ],
)
def test_a_file_is_made_again(files, run_again, tune, tmp_path, kind, output_format):
    asked, given = KINDS[kind]
    (tmp_path / "tune.wav").write_bytes(tune.read_bytes())
    if "input_audio" in asked:
        asked = asked | {"input_audio": data_uri(tune)}
    [raw] = files("predict", **MORE | {"output_format": output_format} | asked)
    assert read_by_others(raw).source == (CONTINUED if kind == "continuation" else GENERATED)
    (tmp_path / "a.x").write_bytes(raw)
    arguments = [part for item in given for part in ("-i", item)]
    copy, _, messages = run_again("--from", "a.x", *arguments)
    assert copy == raw
    assert messages.endswith(f"out/audio.{output_format} equals a.x, byte for byte.\n")


def test_one_clip_of_four_is_made_again(files, run_again, tmp_path):
    (tmp_path / "clip-3.wav").write_bytes(files("songstarter", prompt=PROMPT, **MORE)[3])
    copy, output, _ = run_again("--from", "clip-3.wav", "-i", f"prompt={PROMPT}")
    assert output["seed"] == 10
    assert copy == (tmp_path / "clip-3.wav").read_bytes()


def test_a_file_with_its_prompt_is_made_again_without_asking(run_again, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_TAGS", "full")
    raw, _, _ = run_again("-i", f"prompt={PROMPT}", "-i", "duration=1", "-i", "seed=3")
    monkeypatch.delenv("MUSICGEN_TAGS")
    assert read_by_others(raw).inputs["prompt"] == PROMPT
    copy, _, messages = run_again("--from", "out/audio.mp3")
    assert copy == raw
    assert messages.endswith("out/audio-2.mp3 equals out/audio.mp3, byte for byte.\n")


def test_what_differs_is_said(files, run_again, tmp_path, monkeypatch):
    (tmp_path / "a.mp3").write_bytes(files("predict", duration=1, seed=7)[0])
    _, _, messages = run_again("--from", "a.mp3", "-i", "seed=8", "-i", "top_p=0.5")
    expected = "differs from a.mp3: seed is 8, not 7; top_p is 0.5, not 'default'.\n"
    assert messages.endswith(expected)
    monkeypatch.setattr(again.Original, "environment", {"MUSICGEN_TAGS": "off"})
    _, _, messages = run_again("--from", "a.mp3")
    assert "out/audio-2.mp3 has the sound of a.mp3. The rest of the file differs" in messages


def test_a_file_of_another_model_is_named(checkpoints, run_again, tmp_path):
    url_of_other = ["--weights", str(checkpoints["text"]), "-i", "duration=1", "-i", "seed=7"]
    run_again(*url_of_other, "-o", "other")
    _, _, messages = run_again("--from", "other/audio.mp3")
    assert "differs from other/audio.mp3: model is 'stereo-melody', not 'text'.\n" in messages
