"""Starts the real Cog server without Docker, for the commands and the tests.

Cog's image prepares what is prepared here: the schema file, a `python` on PATH (the server spawns
its worker by that name), and the environment that names the predictor and says how many predictions
it takes at once, which Cog's server, unlike its build, does not read from the source. It reads no
cog.yaml either.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from musicgen.commands import schema
from musicgen.errors import MusicGenError

ROOT = Path(__file__).resolve().parents[2]  # the repository, or /src in Cog's image
PREDICTORS = ("predict", "songstarter")
SETUP_TIMEOUT = 1800  # seconds; a large checkpoint on a slow disk takes minutes
# Of Cog's HTTP server. Where two look for a free slot at the same moment, one gives up and answers
# 409, though most slots are free.
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
    """Become the server. Does not return."""
    command, environment, folder = prepare(predictor, host, port)
    os.chdir(folder)
    os.execve(command[0], command, {"LOG_FORMAT": "console", **environment})


@contextmanager
def running(
    predictor: str, log: IO[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server for `predictor` on a free port, yield its URL once ready, stop it at the end.

    Its log goes to `log`, or to this process's stderr. Raises MusicGenError if setup fails.
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
    """Return when the server's setup() is done; raise MusicGenError, with its log, if it failed."""
    while process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError):
            health = call(f"{url}/health-check")
            if health["status"] == "READY":
                return
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                logs = health.get("setup", {}).get("logs", "")
                raise MusicGenError(f"The server could not start.\n{logs}")
        time.sleep(0.1)
    raise MusicGenError(f"The server stopped with exit code {process.returncode}.")


def stop(process: subprocess.Popen[bytes], url: str) -> None:
    """End the server and the worker it spawned."""
    with suppress(OSError, ValueError):
        call(f"{url}/shutdown", {})
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def call(
    url: str,
    body: Mapping[str, Any] | None = None,
    method: str | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """GET `url`, or POST `body` (or another `method`) to it as JSON; the JSON that comes back."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def _before(folder: Path, variable: str) -> str:
    """The search path in an environment variable, with `folder` in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
