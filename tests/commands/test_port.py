"""A server that finds its port taken by another is not taken for it, and does not stop it."""

import subprocess
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from musicgen.commands import server
from musicgen.commands.client import Client
from musicgen.errors import MusicGenError


@pytest.fixture(scope="module")
def first(start_server, checkpoints):
    return start_server("predict", checkpoints["text"])


@contextmanager
def second(url):
    """The process of a server with the port of the first."""
    command, environment, folder = server.prepare("predict", "127.0.0.1", urlsplit(url).port)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"MUSICGEN_DEVICE": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        server.stop(process, url)


def test_a_server_without_its_port_is_not_ready(first):
    with (
        second(first.url) as process,
        pytest.raises(MusicGenError, match="The server stopped with exit code"),
    ):
        server.wait_until_ready(first.url, process)


def test_stopping_it_leaves_the_server_at_its_port_alone(first):
    with second(first.url) as process:
        assert not server.listens(process, first.url)
    assert Client(first.url).health()["status"] == "READY"
    assert first.predict(duration=1)["status"] == "succeeded"
