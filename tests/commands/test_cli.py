"""The commands in scripts/, run as a user runs them.

test_docs_commands.py checks what scripts/predict prints and saves.
"""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import sounds

import musicgen
from musicgen.checkpoints import folders
from musicgen.commands import cli, options, server
from musicgen.commands.client import Client, RefusedError
from musicgen.errors import MusicGenError

ROOT = Path(__file__).parents[2]


def run(checkpoint, *arguments, cwd=ROOT):
    """Run scripts/<command> to its end."""
    return subprocess.run(
        [ROOT / "scripts" / arguments[0], *arguments[1:]],
        cwd=cwd,
        env={**os.environ, "MUSICGEN_WEIGHTS": str(checkpoint), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_songstarter_saves_four_clips(checkpoints, tmp_path):
    """In another folder than the scripts', with paths relative to it."""
    sounds.write(tmp_path / "tune.m4a", sounds.melody(2.0, 48000))
    command = ["predict", "--predictor", "songstarter", "-i", "duration=2", "-i", "seed=5"]
    command += ["-i", "prompt=lofi chill, 80 bpm", "-i", "input_audio=@tune.m4a", "-o", "out"]
    done = run(checkpoints["stereo-melody"], *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert files == [f"out/clip-{index}.wav" for index in range(4)]
    clips = [soundfile.read(tmp_path / file)[0] for file in files]
    assert all(clip.shape == (64000, 2) for clip in clips)
    assert not any(np.array_equal(clips[0], clip) for clip in clips[1:])
    assert "seed: 5" in done.stderr


def test_a_failed_prediction_is_one_line_and_a_status(checkpoints, tmp_path):
    done = run(checkpoints["text"], "predict", "-i", "continuation=true", "-o", str(tmp_path / "o"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: continuation=True: there is no input_audio")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_folder_without_a_checkpoint_is_refused_before_a_server_starts(tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, problem in (
        ("nothing", "does not exist"),
        ("empty", "is not a checkpoint"),
        ("file", "is a file"),
    ):
        done = run(tmp_path / name, command)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert f"{tmp_path / name} {problem}" in done.stderr


def test_serve_ends_with_the_reason_if_the_checkpoint_is_damaged(checkpoints, tmp_path):
    shutil.copytree(checkpoints["text"], tmp_path / "damaged")
    (tmp_path / "damaged" / "state_dict.bin").write_bytes(b"x")
    done = run(tmp_path / "damaged", "serve", "--port", str(server.free_port()))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: The server could not start: ")
    assert "state_dict.bin" in last


@pytest.mark.parametrize("command", ["serve", "play", "cluster"])
def test_a_port_in_use_is_reported_first(command):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("", command, "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: Port {port} of 127.0.0.1 cannot be used: address already in use. "
        "Choose another with --port.\n"
    )


@contextmanager
def started(checkpoint, *command, **environment):
    """A command in a process group of its own, as of a terminal, with stdout and stderr merged.

    If the test fails, the command is ended with it.
    """
    with subprocess.Popen(
        [ROOT / "scripts" / command[0], *command[1:]],
        env={**os.environ, "MUSICGEN_WEIGHTS": str(checkpoint), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise


def lines_until(process, text):
    """The lines of its output up to the one that has a text."""
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


def test_serve_says_when_it_is_ready_and_logs_a_line_for_each_request(checkpoints, tmp_path):
    port = server.free_port()
    command = ["serve", "--port", str(port), "--weights", str(checkpoints["text"])]
    with started("/nowhere", *command, TMPDIR=str(tmp_path), COG_WEIGHTS="/nowhere") as process:
        url = f"http://127.0.0.1:{port}"
        # The server's own line and the command's come in either order.
        lines = [process.stdout.readline() for _ in range(2)]
        start, ready = sorted(lines, key=lambda line: line.startswith("Ready: "))
        assert start.startswith("text is ready on CPU (")
        assert ready == f"Ready: {url} (API reference: {url}/docs, ctrl-C stops it)\n"
        cog = Client(url)
        assert cog.predict({"duration": 1, "seed": 5}, "mine").facts["model"] == "text"
        with pytest.raises(RefusedError):
            cog.predict({"continuation": True}, "bad")
        good, bad = lines_until(process, "bad failed")
        assert re.fullmatch(r"\S+ mine succeeded after \d+\.\d s, seed 5\n", good)
        assert "continuation=True: there is no input_audio" in bad
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_server_ends_with_its_command_even_if_that_is_killed(checkpoints):
    port = server.free_port()
    with started(checkpoints["text"], "serve", "--port", str(port)) as process:
        lines_until(process, "Ready: ")
        servers = psutil.Process(process.pid).children(recursive=True)
        assert servers
        process.kill()
        psutil.wait_procs(servers)


def test_an_interrupted_prediction_ends_without_traceback_or_leftovers(checkpoints, tmp_path):
    (tmp_path / "tmp").mkdir()
    command = ["predict", "-i", "duration=300", "-o", str(tmp_path / "out")]
    with started(checkpoints["text"], *command, TMPDIR=str(tmp_path / "tmp")) as process:
        lines_until(process, "seed: ")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert list((tmp_path / "tmp").iterdir()) == []


def test_inputs_are_checked_before_a_server_starts(checkpoints, tmp_path, monkeypatch):
    def running(*_):
        raise AssertionError("a server was started")

    monkeypatch.setattr(server, "running", running)
    page = ROOT / "README.md"
    for arguments, message in (
        (["-i", "promt=x"], "no input 'promt'"),
        (["-i", "duration=four"], "not an integer"),
        (["-o", str(page)], str(page)),
        (["-i", f"input_audio=@{page}"], f"input_audio=@{page}: cannot be read"),
    ):
        with pytest.raises(MusicGenError, match=re.escape(message)):
            cli.predict(arguments)


def test_cog_weights_may_be_relative_and_weights_overrides_it(checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints["text"].parent)
    monkeypatch.setenv("COG_WEIGHTS", "text")
    monkeypatch.setenv("MUSICGEN_WEIGHTS", "/nowhere")
    assert options.choose_weights(None) == str(checkpoints["text"])
    assert os.environ["COG_WEIGHTS"] == str(checkpoints["text"])
    assert options.choose_weights(Path("stereo")) == str(checkpoints["stereo"])
    assert "COG_WEIGHTS" not in os.environ
    monkeypatch.setenv("COG_WEIGHTS", "https://host/weights.tar")
    assert options.choose_weights(None) == "https://host/weights.tar"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_cog_folder_of_another_user_is_named_with_the_way_around():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        code = f"""
import os
import pty
from pathlib import Path
from musicgen.commands import server
os.setuid(65534)
server.check_cog_folder(Path({folder!r}, "predictions"))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{folder} belongs to root and is not writable for you" in done.stderr
    assert f"chmod -R a+rwX {folder}" in done.stderr


@pytest.mark.parametrize("command", ["predict", "serve", "play", "cluster", "weights", "soak"])
def test_help_and_version_install_nothing_and_need_only_a_python(tmp_path, command):
    for name in ("scripts", "musicgen", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("predict.py", "songstarter.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    bare = tmp_path / "bin" / "python3"
    bare.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" -S "$@"\n')
    bare.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    for option, expected in (("--help", "usage: scripts/"), ("--version", "musicgen ")):
        done = subprocess.run(
            [tmp_path / "scripts" / command, option],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith(expected), done.stderr
    assert not (tmp_path / ".venv").exists()


def test_verify_finds_files_of_a_second_model(tmp_path, checkpoints):
    shutil.copytree(folders.DEFAULT, tmp_path / "mixed")
    shutil.copy(checkpoints["text"] / "state_dict.bin", tmp_path / "mixed")
    done = run("", "weights", "verify", str(tmp_path / "mixed"))
    assert done.returncode == 1
    assert "has files of another model" in done.stderr
    assert "state_dict.bin" in done.stderr


def test_verify_checks_the_demo_by_default():
    done = run("", "weights", "verify")
    assert done.returncode == 0, done.stderr
    checks = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert checks[:-1] == ["hashes", "dtypes", "shapes", "generation"]
    assert checks[-1].endswith("demo is good.")


@pytest.mark.parametrize(
    "module",
    ["commands.cli predict", "commands.cli serve", "commands.cli weights", "page", "cluster"],
)
def test_every_command_has_a_version_and_prints_it_without_torch(module):
    check = """
import runpy, sys
sys.argv = sys.argv[1:] + ["--version"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    assert "torch" not in sys.modules
"""
    name, *command = module.split()
    arguments = [sys.executable, "-c", check, f"musicgen.{name}", *command]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"musicgen {musicgen.__version__}\n")


def test_setup_is_silent_when_nothing_changed():
    for _ in range(2):
        done = run("", "setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"scripts/(\w+(?:/\w+)?)", text)):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name


def test_cogs_log_has_colours_on_a_terminal_only():
    code = "from musicgen.commands import server; print(server.prepare('predict', '', 0)[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "'NO_COLOR': '1'" in done.stdout
    inner, outer = pty.openpty()
    with os.fdopen(inner), os.fdopen(outer) as terminal:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True)
    assert "NO_COLOR" not in done.stdout
