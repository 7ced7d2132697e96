"""Temporary files of inputs, and the names in errors."""

from pathlib import Path

import pytest

from musicgen.runtime import input_files


@pytest.mark.parametrize(
    ("name", "suffix", "shown"),
    [
        ("song.mp3", "", "song.mp3"),
        ("a b-c'\n.mp3", "", "a b-c'\n.mp3"),
        ("", "", "download"),  # of an address without a path
        (None, ".mp3", "data:..."),
        (None, "", "data:..."),
    ],
)
def test_a_temporary_file_is_shown_under_the_senders_name(
    tmp_path, monkeypatch, name, suffix, shown
):
    monkeypatch.setattr(input_files.tempfile, "tempdir", str(tmp_path))
    with input_files.create(name, suffix) as file:
        path = Path(file.name)
    assert path.parent == tmp_path
    assert path.name.endswith(name or suffix)
    assert input_files.sent_name(path) == shown


@pytest.mark.parametrize("name", ["song.mp3", "input-20261128.wav", "tmpabcd1234file.mp3"])
def test_other_files_keep_their_names(name):
    assert input_files.sent_name(Path("folder") / name) == name
