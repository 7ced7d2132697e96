"""The commands in README, docs/ and weights/ run as printed, in a folder like a fresh clone."""

import functools
import json
import os
import re
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import sounds

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
# The servers that the pages start for their requests.
SERVE, SERVE_STREAMS = (
    "scripts/serve --port 5000",
    "scripts/serve --predictor streaming --port 5000",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "BROWSER": "true"}


def cloned(folder):
    """`folder`, with the files of the repository; a reader's files are made in it."""
    for path in ROOT.iterdir():
        if path.name not in ("out", ".git"):
            (folder / path.name).symlink_to(path)
    sounds.write(folder / "tune.wav", sounds.melody(8.0, 32000), 32000)
    return folder


@pytest.fixture
def clone(tmp_path):
    return cloned(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """(command that stays) -> its address. It runs until the end of the module."""
    with ExitStack() as stack:

        @functools.cache
        def start(command):
            return stack.enter_context(staying(cloned(tmp_path_factory.mktemp("clone")), command))

        yield start


@contextmanager
def staying(clone, command):
    """The address at which a command serves, on another port than the printed one. At the end it
    is interrupted as by ctrl-C."""
    ready = next(text for start, text in STAYS.items() if command.startswith(start))
    command = re.sub(r"--port \d+", "", command)
    port = server.free_port()
    with subprocess.Popen(
        ["bash", "-euc", f"exec {command} --port {port}"],
        cwd=clone,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        while not lines or not lines[-1].startswith(ready):
            lines.append(process.stdout.readline())
            assert lines[-1], lines  # empty at the end of the output
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            printed = process.stdout.read()
    assert "Traceback" not in printed
    assert process.returncode == 130


def run(clone, script):
    """A script's exit code, stdout and stderr; what it leaves in the background is ended."""
    guarded = f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"
    command = ["bash", "-euc", guarded]
    return subprocess.run(command, cwd=clone, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_search_finds_the_commands_of_every_kind():
    assert len(TO_THEIR_END) >= 4
    assert set(SINGLE) >= {SERVE, SERVE_STREAMS, "scripts/play"}


@pytest.mark.parametrize(
    "block", TO_THEIR_END, ids=[f"{block.page}-{i}" for i, block in enumerate(TO_THEIR_END)]
)
def test_a_block_runs_as_printed(block, clone, running):
    script = block.text.removeprefix("$ ")
    shown = block.following
    if block.text.startswith("$ "):  # one command, then its output
        script, _, shown = script.partition("\n")
    if "127.0.0.1:5000" in script:
        url = running(SERVE_STREAMS if "event-stream" in script else SERVE)
        script = script.replace("http://127.0.0.1:5000", url)
    done = run(clone, script)
    if shown.startswith("Error: "):
        assert (done.returncode, done.stdout) == (1, "")
        seed, error = done.stderr.splitlines(keepends=True)
        assert seed.startswith("seed: ")
        assert error == shown
        assert not (clone / "out").exists()
        return
    assert done.returncode == 0, done.stderr
    if "song.mp3" in script:
        assert (clone / "song.mp3").stat().st_size > 100_000
    if "song.s16" in script:
        assert (clone / "song.s16").stat().st_size == 4 * 32000 * 2 * 2
    if shown.startswith("{") and "scripts/predict" in script:
        assert json.loads(done.stdout) == json.loads(shown)


@pytest.mark.parametrize("command", SINGLE)
def test_a_command_of_a_longer_block_runs_as_printed(command, clone, running):
    if stays(command):
        assert running(command)
        return
    done = run(clone, command)
    assert done.returncode == 0, done.stderr


def test_the_output_that_the_readme_shows_for_the_first_command_is_its_output(clone):
    command, following = FIRST
    done = run(clone, command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(following[following.index("{") :])
    assert "seed: 80" in done.stderr
    assert "decode: 100%" in done.stderr
    assert sounds.length(clone / "out" / "audio.mp3") == (4.0, 2, 32000)
