"""Temporary folders of commands that have ended are removed, others stay."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from musicgen.commands import temporary

HOLD = """
import subprocess, sys
from musicgen.commands import temporary
with temporary.folder() as own:
    (own.path / "clip.mp3").touch()
    child = subprocess.Popen(["sleep", "600"], pass_fds=[own.lock])
    print(own.path, child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_folder_is_removed_when_its_command_ends(tmp_path):
    with temporary.folder() as own:
        (own.path / "clip.mp3").touch()
        assert own.path.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_stays_while_its_command_or_a_server_of_it_runs(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        path, child = command.stdout.readline().split()
        temporary.remove_leftovers()
        assert os.path.exists(path)
        command.kill()
        command.wait()
        temporary.remove_leftovers()
        assert os.path.exists(path)  # the child, which stands for a server, still uses it
        os.kill(int(child), signal.SIGKILL)
        while os.path.exists(path):
            temporary.remove_leftovers()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_programs_are_left_alone(tmp_path):
    for name in ("other", "musicgen-abc", "musicgen-run-without-lock"):
        (tmp_path / name).mkdir()
    temporary.remove_leftovers()
    assert len(list(tmp_path.iterdir())) == 3
