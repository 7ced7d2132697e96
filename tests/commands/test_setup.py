"""scripts/setup says what is missing before it downloads anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen.commands.server import ROOT

TOOLS = ("bash", "sed", "awk", "cat", "rm", "dirname", "uname")


@pytest.fixture
def clone(tmp_path):
    """A clone without .venv, and `bin` with the tools that are on every machine."""
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)
    program(tmp_path, "df", "echo Filesystem; echo disk 1 1 50000 1% /")
    return tmp_path


def program(clone, name, script):
    """Put a shell script on the clone's PATH."""
    path = clone / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(clone, *arguments, **environment):
    """Run scripts/setup with the clone's PATH; it must not have made a .venv."""
    done = subprocess.run(
        [clone / "scripts" / "setup", *arguments],
        env={"PATH": str(clone / "bin"), "HOME": str(clone), **environment},
        capture_output=True,
        text=True,
    )
    assert not (clone / ".venv").exists()
    return done


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_installs_nothing(clone, option):
    done = setup(clone, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: scripts/setup [REQUIREMENTS-FILE ...]\n")


def test_a_disk_that_is_too_small_is_named_with_the_space_that_is_needed(clone):
    program(clone, "df", "echo Filesystem; echo disk 1 1 4000 1% /")
    done = setup(clone)
    assert done.returncode == 1
    assert "needs 6500 MB of disk space; 4000 MB are free" in done.stderr
    without_gpu = setup(clone, UV_TORCH_BACKEND="cpu")
    assert "pip" in without_gpu.stderr  # 4000 MB are enough, so the next thing is missing


def test_a_python_without_pip_is_an_error_with_the_way_out(clone):
    program(clone, "python3", f'exec "{Path(sys.executable).resolve()}" -I -S "$@"')
    done = setup(clone)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: Installing needs uv, or a python3 with pip. "
        "On Debian and Ubuntu: apt install python3-pip."
    )


def test_a_machine_without_a_suitable_python_is_told_which_ones_are(clone):
    uv = shutil.which("uv", path=os.pathsep.join([os.environ["PATH"], str(ROOT / ".uv" / "bin")]))
    if not uv:
        pytest.skip("uv is not installed")
    (clone / "bin" / "uv").symlink_to(uv)
    done = setup(clone, UV_PYTHON_DOWNLOADS="never")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "This machine has neither Python 3.11 nor 3.12: downloading one ...",
        "Error: Python 3.11 or 3.12 is needed and could not be downloaded. "
        "Install one of them (for example: apt install python3.12), then run this command again.",
    ]


@pytest.mark.parametrize("command", ["scripts/bench", "training/train", "training/evaluate"])
def test_help_of_a_command_that_needs_packages_says_so(clone, command):
    shutil.copytree(ROOT / "training", clone / "training", dirs_exist_ok=True)
    program(clone, "python3", f'exec "{Path(sys.executable).resolve()}" -I -S "$@"')
    done = subprocess.run(
        [clone / command, "--help"],
        env={"PATH": str(clone / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "The options of this command need the packages in .venv: run scripts/setup first.\n"
    )
    assert not (clone / ".venv").exists()


def test_a_file_of_tests_that_does_not_exist_is_refused_before_the_linters_run(clone):
    command = [clone / "scripts" / "test", "tests/wrong.py::test_x", "-x"]
    done = subprocess.run(command, env={"PATH": str(clone / "bin")}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no tests/wrong.py here.\n"
