"""The commands in README, docs/ and weights/ run as printed, in a folder like a fresh clone."""

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import sounds

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands import server
from musicgen.commands.server import ROOT

PAGES = [ROOT / "README.md", ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = "curl|python3|git|cog|docker|gcloud|uv|export|mkdir|openssl"
COMMANDS = re.compile(rf"^(\$ )?(({PROGRAMS}) |scripts/|\.venv/|[A-Z_]+=)", re.MULTILINE)
# A part of a command -> the reason why it does not run here.
ELSEWHERE = {
    "git clone": "needs the repository's address",
    "cog ": "needs Docker",
    "docker ": "needs Docker",
    "gcloud ": "needs an account",
    "weights pull": "needs the hub",
    "weights/musicgen-": "needs weights from the hub",
    "uv pip": "changes .venv",
    "haproxy": "tests/deploy runs it",
    "openssl": "tests/deploy runs it",
    "deploy/certs": "tests/deploy runs it",
    "YOUR.HOST": "needs a host",
    "ray start": "needs several machines",
    "--address": "needs several machines",
    "--gpus": "needs GPUs",
    "scripts/cluster": "tests/cluster runs it",
    "scripts/soak --minutes 60": "takes an hour; tests/benchmarks runs a short one",
    "PYTHONPATH=$PWD": "needs several machines",
    "OTEL_": "tests/deploy runs it",
    "--server": "needs a server; tests/page runs it",
}
STAYS = {"scripts/serve": "Ready: ", "scripts/play": "The page is ready: "}


@dataclass(frozen=True)
class Block:
    """A fenced block of commands, and the block after it, which may be their output."""

    page: str
    text: str
    following: str

    @property
    def commands(self):
        """Its commands, without comments, with continued lines joined."""
        text = re.sub(r"\s+#.*$|^#.*$", "", self.text.replace("\\\n", " "), flags=re.MULTILINE)
        quoted = re.sub(r'"[^"]*"', lambda found: found[0].replace("\n", " "), text)
        return [line.strip() for line in quoted.splitlines() if line.strip()]


def elsewhere(command):
    return any(part in command for part in ELSEWHERE)


def stays(command):
    return command.startswith(tuple(STAYS))


def blocks():
    """The blocks of all pages in which a line is a command."""
    found = []
    for page in PAGES:
        fenced = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
        texts = [text for _, text in fenced]
        for (kind, text), after in zip(fenced, [*texts[1:], ""], strict=False):
            if kind in ("", "bash", "console") and COMMANDS.search(text):
                found.append(Block(str(page.relative_to(ROOT)), text, after))
    return found


BLOCKS = blocks()
TO_THEIR_END = [
    block
    for block in BLOCKS
    if not any(elsewhere(command) or stays(command) for command in block.commands)
]
# The command whose output README shows: the test of that output runs it.
[FIRST] = [
    (command, block.following)
    for block in BLOCKS
    for command in block.commands
    if "git clone" in block.text and command.startswith("scripts/predict")
]
SINGLE = sorted(
    {
        command.removesuffix(" &")
        for block in BLOCKS
        if block not in TO_THEIR_END
        for command in block.commands
        if not elsewhere(command) and command != FIRST[0]
    }
)


@pytest.fixture
def clone(tmp_path):
    """A folder with the files of the repository, in which a reader's files are made."""
    for path in ROOT.iterdir():
        if path.name not in ("out", ".git"):
            (tmp_path / path.name).symlink_to(path)
    sounds.write(tmp_path / "tune.wav", sounds.melody(8.0, 32000), 32000)
    return tmp_path


def run(clone, script):
    """A script's exit code, stdout and stderr; what it leaves in the background is ended."""
    guarded = f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"
    return subprocess.run(
        ["bash", "-euc", guarded],
        cwd=clone,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_search_finds_the_commands_of_every_kind():
    assert len(TO_THEIR_END) >= 4
    assert {command.split()[0] for command in SINGLE} >= {"scripts/serve", "scripts/play"}


@pytest.mark.parametrize(
    "block", TO_THEIR_END, ids=[f"{block.page}-{i}" for i, block in enumerate(TO_THEIR_END)]
)
def test_a_block_runs_as_printed(block, clone, request):
    script = block.text.removeprefix("$ ")
    shown = block.following
    if block.text.startswith("$ "):  # one command, then its output
        script, _, shown = script.partition("\n")
    if "127.0.0.1:5000" in script:
        if "event-stream" in script:
            url = request.getfixturevalue("start_server")("streaming", DEFAULT).url
        else:
            url = request.getfixturevalue("demo_server").url
        script = script.replace("http://127.0.0.1:5000", url)
    done = run(clone, script)
    if shown.startswith("Error: "):
        assert done.returncode == 1
        assert done.stderr.endswith(shown)  # after the seed
        return
    assert done.returncode == 0, done.stderr
    if "song.mp3" in script:
        assert (clone / "song.mp3").stat().st_size > 100_000
    if "song.s16" in script:
        assert (clone / "song.s16").stat().st_size == 4 * 32000 * 2 * 2
    if shown.startswith("{") and "scripts/predict" in script:
        assert json.loads(done.stdout) == json.loads(shown)


@pytest.mark.parametrize("command", SINGLE)
def test_a_command_of_a_longer_block_runs_as_printed(command, clone):
    if not stays(command):
        done = run(clone, command)
        assert done.returncode == 0, done.stderr
        return
    ready = next(text for start, text in STAYS.items() if command.startswith(start))
    command = re.sub(r"--port \d+", "", command)
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {command} --port {server.free_port()}"],
        cwd=clone,
        env={**os.environ, "BROWSER": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        lines = []
        while not lines or not lines[-1].startswith(ready):
            lines.append(process.stdout.readline())
            assert lines[-1], lines  # empty at the end of the output
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stdout.read()
    assert process.returncode == 130


def test_the_output_that_the_readme_shows_for_the_first_command_is_its_output(clone):
    command, following = FIRST
    done = run(clone, command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(following[following.index("{") :])
    assert Path(clone / json.loads(done.stdout)["audio"]).stat().st_size > 100_000
