"""Saved audio: nothing is replaced, and nothing is lost."""

import base64
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from musicgen.commands import results
from musicgen.commands.client import Prediction
from musicgen.errors import MusicGenError


def prediction(content=b"sound", clips=None):
    uri = f"data:audio/mpeg;base64,{base64.b64encode(content).decode()}"
    output = {"audio": uri, "seed": 1} if clips is None else [uri] * clips
    return Prediction(output, "", {})


def test_earlier_takes_are_kept(tmp_path):
    for content, name in (
        (b"one", "audio.mp3"),
        (b"two", "audio-2.mp3"),
        (b"three", "audio-3.mp3"),
    ):
        output = results.save(prediction(content), tmp_path)
        assert output == {"audio": str(tmp_path / name), "seed": 1}
        assert (tmp_path / name).read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 3


def test_the_clips_of_a_take_share_a_number(tmp_path):
    (tmp_path / "clip-1.mp3").write_bytes(b"mine")
    saved = results.save(prediction(clips=3), tmp_path)
    assert saved == [str(tmp_path / f"clip-{index}-2.mp3") for index in range(3)]
    assert (tmp_path / "clip-1.mp3").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 4


def test_audio_in_a_bucket_stays_there(tmp_path):
    output = {"audio": "https://storage/songs/1.mp3"}
    assert results.save(Prediction(output, "", {}), tmp_path) == output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(MusicGenError, match=r"^-o .*file"), results.folder_for(tmp_path / name):
        pass


def test_a_new_folder_is_removed_after_an_error_and_an_older_one_stays(tmp_path):
    for folder in (tmp_path / "new", tmp_path):
        with suppress(KeyboardInterrupt), results.folder_for(folder):
            assert folder.is_dir()
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from musicgen.commands import results
from musicgen.commands.client import Prediction
import base64
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, rescue = map(Path, sys.argv[1:])
write = Path.write_bytes
def full(self, content):
    # The disk of `folder` is full: the limit on file sizes stands for it.
    limit = 100 if folder in self.parents else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return write(self, content)
Path.write_bytes = full
uri = "data:audio/mpeg;base64," + base64.b64encode(b"x" * 5000).decode()
results.save(Prediction({"audio": uri}, "", {}), folder)
"""


def test_a_full_disk_loses_no_audio(tmp_path):
    folder, rescue = tmp_path / "out", tmp_path / "tmp"
    folder.mkdir()
    rescue.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL, folder, rescue],
        env={**os.environ, "TMPDIR": str(rescue)},
        capture_output=True,
        text=True,
    )
    assert list(folder.iterdir()) == []
    [saved] = rescue.glob("musicgen-saved-*/audio.mp3")
    assert saved.read_bytes() == b"x" * 5000
    assert f"-o {folder}: File too large. The audio is in {saved} instead." in done.stderr
