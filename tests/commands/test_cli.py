"""The commands in scripts/, run as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile
import sounds

import musicgen
from musicgen.checkpoints import folders
from musicgen.commands import cli, server
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


def length(path):
    """Seconds, channels and sample rate of an audio file."""
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        stream = container.streams.audio[0]
        samples = sum(block.size for block in blocks) / stream.channels
        return samples / stream.sample_rate, stream.channels, stream.sample_rate


def test_predict_saves_a_playable_file_and_prints_the_rest(checkpoints, tmp_path):
    sounds.write(tmp_path / "tune.m4a", sounds.melody(2.0, 48000))
    command = ["predict", "-i", "prompt=lofi chill, 80 bpm", "-i", "duration=4", "-i", "seed=5"]
    command += ["-i", "input_audio=@tune.m4a", "-o", "out"]
    done = run(checkpoints["stereo-melody"], *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert length(tmp_path / "out" / "audio.mp3") == (4.0, 2, 32000)
    assert json.loads(done.stdout) == {
        "audio": "out/audio.mp3",
        "channels": 2,
        "duration": 4.0,
        "model": "stereo-melody",
        "output_format": "mp3",
        "sample_rate": 32000,
        "seed": 5,
    }
    assert "seed: 5" in done.stderr
    assert "decode: 100%" in done.stderr


def test_songstarter_saves_four_clips(checkpoints, tmp_path):
    command = [
        "predict",
        "--predictor",
        "songstarter",
        "-i",
        "duration=2",
        "-o",
        str(tmp_path / "out"),
    ]
    done = run(checkpoints["text"], *command)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert files == [str(tmp_path / "out" / f"clip-{index}.wav") for index in range(4)]
    clips = [soundfile.read(file)[0] for file in files]
    assert all(clip.shape == (64000,) for clip in clips)
    assert not any(np.array_equal(clips[0], clip) for clip in clips[1:])


def test_a_failed_prediction_is_one_line_and_a_status(checkpoints, tmp_path):
    done = run(checkpoints["text"], "predict", "-i", "continuation=true", "-o", str(tmp_path / "o"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: continuation=True: there is no input_audio")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_server_that_cannot_start_reports_the_reason(tmp_path):
    done = run(tmp_path / "nothing", "predict", "-i", "duration=1")
    assert done.returncode == 1
    assert f"The checkpoint folder {tmp_path / 'nothing'} does not exist" in done.stderr


def test_serve_runs_until_it_is_interrupted(checkpoints):
    port = server.free_port()
    process = subprocess.Popen(
        [ROOT / "scripts" / "serve", "--port", str(port), "--weights", checkpoints["text"]],
        stderr=subprocess.PIPE,
    )
    try:
        server.wait_until_ready(f"http://127.0.0.1:{port}", process)
        body = {"input": {"duration": 1}}
        answer = httpx.post(f"http://127.0.0.1:{port}/predictions", json=body, timeout=None)
        assert answer.json()["output"]["model"] == "text"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stderr.close()


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


def test_lines_that_are_not_cogs_do_not_end_the_log(capsys):
    message = {"message": "seed: 1", "source": "Stderr"}
    good = json.dumps({"target": "coglet::prediction", "fields": message})
    with cli.prediction_log() as log:
        print("{not JSON", "[1]", '{"target": "coglet::prediction"}', good, sep="\n", file=log)
    assert capsys.readouterr().err == "seed: 1\n"


def test_setup_is_silent_when_nothing_changed():
    for _ in range(2):
        done = run("", "setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FIELDS = {"duration": {"type": "integer"}, "prompt": {"type": "string"}, "key": {}}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("duration=4", ("duration", 4)),
        ("duration=x", ("duration", "x")),
        ("prompt=4", ("prompt", "4")),
        ("prompt=a=b", ("prompt", "a=b")),
        ("prompt=", ("prompt", "")),
    ],
)
def test_inputs_have_their_fields_type(item, expected):
    assert cli.read_input(item, FIELDS) == expected


@pytest.mark.parametrize("item", ["duration", "size=3"])
def test_an_unknown_input_names_the_known_ones(item):
    with pytest.raises(MusicGenError, match="one of duration, prompt, key"):
        cli.read_input(item, FIELDS)


def blocks(text):
    """The fenced blocks of a Markdown text."""
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def test_the_readmes_curl_example_works_as_printed(start_server, tmp_path):
    running = start_server("predict", folders.DEFAULT)
    found = blocks((ROOT / "README.md").read_text())
    index = next(i for i, block in enumerate(found) if block.startswith("curl -s http://127"))
    script = found[index].replace("http://127.0.0.1:5000", running.url)
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == found[index + 1], done.stderr
    assert length(tmp_path / "song.mp3") == (4.0, 2, 32000)


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"scripts/(\w+(?:/\w+)?)", text)):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name
