"""scripts/predict --from: inputs from tags, questions at the terminal, messages."""

import json
import os
import pty
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from musicgen.commands.again import Original
from musicgen.commands.inputs import read_fields
from musicgen.commands.server import ROOT
from musicgen.errors import InputError, MusicGenError
from musicgen.provenance import GENERATED, Provenance

DOCUMENT = json.loads((ROOT / "tests" / "contract" / "predict.openapi.json").read_text())
FIELDS = read_fields(DOCUMENT)


def original(needs=(), **inputs):
    made = Provenance("musicgen 0.2.0", "demo", GENERATED, inputs, needs)
    return Original(Path("song.mp3"), made)


@contextmanager
def terminal(monkeypatch, typed):
    """A terminal as standard input, at which a text is typed."""
    inner, outer = pty.openpty()
    os.write(inner, typed.encode())
    with os.fdopen(inner), os.fdopen(outer) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield


def test_tags_give_the_inputs_and_the_command_line_replaces_them():
    found = original(seed=7, duration=4, temperature=0.5, continuation=False, prompt="lofi, 80 bpm")
    assert found.inputs({"seed": 8}, FIELDS) == {
        "seed": 8,
        "duration": 4,
        "temperature": 0.5,
        "continuation": False,
        "prompt": "lofi, 80 bpm",
    }


def test_missing_inputs_are_asked_for_at_the_terminal(monkeypatch, capsys, tune):
    with terminal(monkeypatch, f"warm piano \n@{tune}\n"):
        found = original(("prompt", "input_audio"), seed=7).inputs({}, FIELDS)
    assert found == {"seed": 7, "prompt": "warm piano", "input_audio": tune}
    done = capsys.readouterr()
    assert done.out == ""
    assert done.err == "prompt: input_audio (an http(s) address, a data URI, or @FILE): "


def test_inputs_on_the_command_line_are_not_asked_for(monkeypatch, capsys):
    with terminal(monkeypatch, ""):
        found = original(("prompt",), seed=7).inputs({"prompt": "x"}, FIELDS)
    assert found == {"seed": 7, "prompt": "x"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "value"), [("prompt", "VALUE"), ("input_audio", "@FILE")])
def test_without_a_terminal_a_missing_input_is_an_error(monkeypatch, name, value):
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(MusicGenError, match=rf"do not have: {name}. Add -i {name}={value}\."):
            original((name,)).inputs({}, FIELDS)


@pytest.mark.parametrize("inputs", [{"duration": 4.5}, {"top_p": 2}, {"output_format": "exe"}])
def test_values_in_tags_are_checked_like_those_of_a_command_line(inputs):
    with pytest.raises(InputError, match=next(iter(inputs))):
        original(**inputs).inputs({}, FIELDS)


def test_a_file_without_tags_or_that_is_absent_is_named(tmp_path, tune):
    with pytest.raises(MusicGenError, match=rf"--from {tune}: it has no tags of this server"):
        Original.read(tune)
    with pytest.raises(MusicGenError, match=r"--from nothing\.mp3: No such file or directory"):
        Original.read(Path("nothing.mp3"))
