"""A server starts and serves without a network: the checkpoint's folder has every file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen.checkpoints.convert import convert

HERE = Path(__file__).parents[1]


def namespace():
    """A prefix that runs a command without a network; [] where that is not allowed."""
    command = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        return []
    return command


@pytest.fixture(scope="module")
def converted(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "converted"
    convert(checkpoints["stereo"], folder, "offline-model")
    return folder


def test_a_converted_checkpoint_is_served_without_a_network(converted, tmp_path):
    command = namespace()
    attempts = tmp_path / "attempts"
    done = subprocess.run(
        [
            *command,
            sys.executable,
            "-W",
            "ignore",
            HERE / "offline.py",
            converted,
            tmp_path / "log",
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "NETWORK_LOG": str(attempts),
            **({"IN_NAMESPACE": "1"} if command else {}),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    output = json.loads(done.stdout)
    assert output["model"] == "offline-model"
    assert output["channels"] == 2
    assert output["audio"] > 32000 * 2 * 2  # 16 bits, two channels, base64
    assert not attempts.exists(), attempts.read_text()


def test_the_guard_refuses_connections(tmp_path):
    """Where no namespace is allowed, the test above relies on this guard."""
    code = "import socket; socket.create_connection(('192.0.2.1', 443), 1)"
    environment = {"PYTHONPATH": str(HERE / "guard"), "NETWORK_LOG": str(tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "no network: 192.0.2.1" in done.stderr
    assert "192.0.2.1" in (tmp_path / "log").read_text()
