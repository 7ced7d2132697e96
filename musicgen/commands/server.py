"""Starts the real Cog server without Docker, for the commands and the tests.

Cog's image contains what this module prepares: the schema file; a `python` on PATH, since the
server starts its worker by that name; and environment variables for the predictor and its maximum
concurrency. Cog's server reads neither cog.yaml nor, unlike `cog build`, the predictor's source.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from musicgen.commands import schema
from musicgen.commands.client import PREFIXES, Client, ServerError, UnreachableError
from musicgen.errors import MusicGenError

ROOT = Path(__file__).resolve().parents[2]  # the repository, or /src in Cog's image
PREDICTORS = ("predict", "songstarter")
SETUP_TIMEOUT = 1800  # seconds; a large checkpoint on a slow disk takes minutes
# Threads of Cog's HTTP server. When two threads look for a free slot at the same moment, one of
# them answers 409 although most slots are free.
THREADS = 1


def prepare(predictor: str, host: str, port: int) -> tuple[list[str], dict[str, str], Path]:
    """Command, environment and folder that run the server for `predictor`.

    Each predictor has its own folder, because Cog's server reads the schema from the folder it is
    started in.
    """
    folder = ROOT / ".cog" / predictor
    source = ROOT / f"{predictor}.py"
    schema.write(source, folder / ".cog" / "openapi_schema.json")
    environment = {
        "COG_MAX_CONCURRENCY": str(schema.concurrency(source.read_text())),
        "COG_SETUP_TIMEOUT": str(SETUP_TIMEOUT),
        "TOKIO_WORKER_THREADS": str(THREADS),
        **os.environ,
        "PATH": _before(Path(sys.executable).parent, "PATH"),
        "PYTHONPATH": _before(ROOT, "PYTHONPATH"),
        "COG_PREDICT_TYPE_STUB": f"{source}:Predictor",
        "PORT": str(port),
    }
    return [sys.executable, "-m", "cog.server.http", "--host", host], environment, folder


def serve(predictor: str, host: str, port: int) -> None:
    """Replace this process by the server."""
    command, environment, folder = prepare(predictor, host, port)
    os.chdir(folder)
    os.execve(command[0], command, {"LOG_FORMAT": "console", **environment})


@contextmanager
def running(
    predictor: str, log: IO[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server for `predictor` on a free port, yield its URL when it is ready, then stop it.

    The server writes its log to `log`, or to this process's stderr. Raises MusicGenError if its
    setup fails.
    """
    port = free_port()
    command, defaults, folder = prepare(predictor, "127.0.0.1", port)
    process = subprocess.Popen(
        command, cwd=folder, env={**defaults, **(environment or {})}, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        stop(process, url)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server's setup() has finished. Raises MusicGenError, with the reason, if it
    failed."""
    client = Client(url)
    while process.poll() is None:
        with suppress(UnreachableError):
            health = client.health()
            if health["status"] == "READY":
                return
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                raise MusicGenError(f"The server could not start: {setup_error(health)}")
        time.sleep(0.1)
    raise MusicGenError(f"The server stopped with exit code {process.returncode}.")


def setup_error(health: Mapping[str, Any]) -> str:
    """The reason in the health of a server whose setup() failed."""
    return PREFIXES.sub("", health.get("setup", {}).get("logs", "").strip())


def stop(process: subprocess.Popen[bytes], url: str) -> None:
    """End the server and the worker process that it started."""
    with suppress(ServerError):
        Client(url).shutdown()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _before(folder: Path, variable: str) -> str:
    """The search path in an environment variable, with `folder` before its other folders."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def free_port() -> int:
    """A free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
