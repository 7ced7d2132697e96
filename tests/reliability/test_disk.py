"""A disk that is full, or too few descriptors: one clear failure each, and the server goes on.

A small disk is a tmpfs in a mount namespace of the server's own.
"""

import subprocess
from contextlib import contextmanager

import httpx
import pytest
import sounds
from cog_client import CogClient, data_uri

from musicgen.commands import server


@contextmanager
def limited(tmp_path, checkpoint, *wrapper):
    """A server below a command that limits it; `{tmp}` in that is its folder of temporary files."""
    (tmp_path / "tmp").mkdir()
    port = server.free_port()
    command, environment, folder = server.prepare("predict", "127.0.0.1", port)
    environment |= {
        "MUSICGEN_WEIGHTS": str(checkpoint),
        "MUSICGEN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    limit = [part.replace("{tmp}", str(tmp_path / "tmp")) for part in wrapper]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*limit, *command], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            server.wait_until_ready(url, process)
            yield CogClient(url, tmp_path / "tmp", tmp_path / "server.log")
        finally:
            server.stop(process, url)


def small_disk(megabytes):
    mount = f'mount -t tmpfs -o size={megabytes}m none {{tmp}} && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount, "sh"]


@pytest.mark.parametrize("output_format", ["wav", "mp3"])
def test_a_full_disk_fails_one_prediction_and_is_free_again(tmp_path, checkpoints, output_format):
    with limited(tmp_path, checkpoints["text"], *small_disk(1)) as small:
        for _ in range(2):  # what a failure left would be in the way of the second
            small.predict(duration=1, output_format=output_format)
            error = small.error(duration=30, output_format=output_format)
            assert f"OutputError: {output_format} could not be written: No space left" in error


def test_an_input_that_does_not_fit_fails_one_prediction(tmp_path, checkpoints):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(30.0), 44100)
    with limited(tmp_path, checkpoints["text"], *small_disk(3)) as small:
        for _ in range(2):
            error = small.error(
                input_audio=data_uri(path), continuation=True, continuation_end=1, duration=2
            )
            assert "No space left" in error
        assert httpx.get(f"{small.url}/health-check").json()["status"] == "READY"


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, checkpoints):
    mount = 'mount -t tmpfs -o ro none {tmp} && exec "$@"'
    with limited(
        tmp_path, checkpoints["text"], "unshare", "-Urm", "sh", "-c", mount, "sh"
    ) as readonly:
        readonly.predict(duration=1)
