"""No process that a command starts has the upload key in its environment; uploads work with it.

The environments are those of /proc/PID/environ, which has the variables that a process was started
with, also if the process has removed them since.
"""

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import ray_cluster
import storage

from musicgen.commands import server

KEY = "clé-0xC0FFEE-battery"
WRONG = "not-0xDECAF-quite"


@pytest.fixture(scope="module")
def settings(checkpoints):
    """The environment of a command whose server can upload."""
    with storage.storage_server("songs") as url:
        yield {
            "MUSICGEN_WEIGHTS": str(checkpoints["text"]),
            "OMP_NUM_THREADS": "1",
            "UPLOAD_BUCKET": "songs",
            "UPLOAD_KEY": KEY,
            "STORAGE_EMULATOR_HOST": url,
        }


def family(pid):
    """A process and all that it has started, by their ids and names."""
    root = psutil.Process(pid)
    return {one.pid: " ".join(one.cmdline())[:80] for one in [root, *root.children(recursive=True)]}


def with_key(processes):
    """The names of the processes that have the key in their environment."""
    found = []
    for pid, name in processes.items():
        with suppress(OSError):  # it has ended
            if b"0xC0FFEE" in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(name)
    return found


def check_uploads(url):
    """The key is the server's, and another is not."""

    def output(key):
        body = {"input": {"duration": 1, "song_id": 1, "key": key}}
        return httpx.post(f"{url}/predictions", json=body, timeout=None).json()

    assert output(KEY)["output"]["gcs_uri"] == "gs://songs/songs/1.mp3"
    assert "key='***': wrong key" in output(WRONG)["error"]


@contextmanager
def command(log, settings, *arguments):
    """A command of this project, after it has printed that it is ready."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=server.ROOT,
            env=os.environ | {"MUSICGEN_DEVICE": "cpu"} | settings,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        while "eady: " not in log.read_text():
            assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("by", ["UPLOAD_KEY", "UPLOAD_KEY_FILE"])
def test_no_process_of_a_server_has_the_key_in_its_environment(tmp_path, settings, by):
    if by == "UPLOAD_KEY_FILE":
        (tmp_path / "key").write_text(f"{KEY}\n")
        settings = {**settings, by: str(tmp_path / "key"), "UPLOAD_KEY": ""}
        del settings["UPLOAD_KEY"]
    port = server.free_port()
    serve = ("musicgen.commands.cli", "serve", "--port", str(port))
    with command(tmp_path / "log", settings, *serve) as process:
        processes = family(process.pid)
        assert any("cog.server.http" in name for name in processes.values())
        assert any("_run_worker" in name for name in processes.values())
        assert with_key(processes) == []
        check_uploads(f"http://127.0.0.1:{port}")
        assert with_key(family(process.pid)) == []
    assert "0xC0FFEE" not in (tmp_path / "log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_of_a_cluster_has_the_key_in_its_environment(tmp_path, settings):
    log = tmp_path / "log"
    with ray_cluster.started(log, **settings) as cluster:
        processes = family(cluster.process.pid)
        # Ray's processes and the servers may have been started by another process since.
        processes |= {one.pid: " ".join(one.cmdline())[:80] for one in cluster.processes()}
        for kind in ("raylet", "gcs_server", "ProxyActor", ":gate", ":replica", "_run_worker"):
            assert any(kind in name for name in processes.values()), (kind, processes)
        assert with_key(processes) == []
        check_uploads(cluster.url)
    assert "0xC0FFEE" not in log.read_text()
