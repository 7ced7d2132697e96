"""No process that a server's command starts has the upload key in its environment.

tests/cluster has the same test of a cluster.
"""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import upload_key
from gate import until
from upload_key import KEY, PART, check_uploads, family, with_key

from musicgen.commands import server


@pytest.fixture
def settings(checkpoints, storage_url):
    weights = {"MUSICGEN_WEIGHTS": str(checkpoints["text"]), "OMP_NUM_THREADS": "1"}
    return weights | upload_key.settings(storage_url)


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
        until(lambda: "eady: " in log.read_text() or process.poll() is not None)
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
        settings = {**settings, by: str(tmp_path / "key")}
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
    assert PART not in (tmp_path / "log").read_text()
