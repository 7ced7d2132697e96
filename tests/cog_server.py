"""Starts real Cog servers for the tests, each with its own port, temporary folder and log."""

import subprocess
from contextlib import contextmanager

from cog_client import CogClient

from musicgen.commands import server


@contextmanager
def cog_server(folder, checkpoint, predictor="predict", wrapper=(), **environment):
    """A `CogClient` of a ready server; the server stops at the end.

    `folder` receives its log and its temporary folder. `wrapper` is a command that runs the server
    with limits; `{tmp}` in it is replaced by the temporary folder.
    """
    temporary, log = folder / "tmp", folder / "server.log"
    temporary.mkdir(parents=True)
    port = server.free_port()
    command, defaults, working_folder = server.prepare(predictor, "127.0.0.1", port)
    wrapped = [part.replace("{tmp}", str(temporary)) for part in wrapper]
    settings = {
        "MUSICGEN_WEIGHTS": str(checkpoint),
        "MUSICGEN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*wrapped, *command],
            cwd=working_folder,
            env=defaults | settings | environment,
            stdout=stream,
            stderr=stream,
        )
        try:
            server.wait_until_ready(url, process)
            yield CogClient(url, temporary, log)
        finally:
            server.stop(process, url)


@contextmanager
def server_without_checkpoint(folder):
    """(url, process) of a server that has just started and whose setup will fail."""
    (folder / "empty").mkdir()
    port = server.free_port()
    command, environment, working_folder = server.prepare("predict", "127.0.0.1", port)
    environment |= {"MUSICGEN_WEIGHTS": str(folder / "empty"), "MUSICGEN_DEVICE": "cpu"}
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=working_folder, env=environment, stdout=log, stderr=log
        )
        try:
            yield url, process
        finally:
            server.stop(process, url)
