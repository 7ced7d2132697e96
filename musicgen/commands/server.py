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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from musicgen.commands import log as logs
from musicgen.commands import processes, schema, temporary
from musicgen.commands.client import PREFIXES, Client, ServerError, UnreachableError
from musicgen.errors import MusicGenError
from musicgen.serving import upload_key
from musicgen.serving.result_files import COG_FOLDER

ROOT = Path(__file__).resolve().parents[2]  # the repository, or /src in Cog's image
PREDICTORS = ("predict", "songstarter", "streaming")
SETUP_TIMEOUT = 1800  # seconds; a large checkpoint on a slow disk takes minutes
# Threads of Cog's HTTP server. When two threads look for a free slot at the same moment, one of
# them answers 409 although most slots are free.
THREADS = 1
# Events of a running prediction that Cog keeps for late readers. Its default of 1,024 would keep
# all pieces of a stream: 51 MB for five minutes of stereo.
STREAM_HISTORY = 16
STOP_SECONDS = 10  # for a server to end before it is killed
INTERRUPT_SECONDS = 0.5  # the same after ctrl-C


def source(predictor: str) -> Path:
    """The file of a predictor."""
    return ROOT / f"{predictor}.py"


def prepare(predictor: str, host: str, port: int) -> tuple[list[str], dict[str, str], Path]:
    """Command, environment and folder that run the server for `predictor`.

    Each predictor has its own folder, because Cog's server reads the schema from the folder it is
    started in. Raises MusicGenError if Cog cannot use its folder for predictions.
    """
    check_cog_folder(COG_FOLDER)
    folder = ROOT / ".cog" / predictor
    schema.write(source(predictor), folder / ".cog" / "openapi_schema.json")
    environment = {
        "COG_MAX_CONCURRENCY": str(schema.concurrency(source(predictor).read_text())),
        "COG_SETUP_TIMEOUT": str(SETUP_TIMEOUT),
        "COG_STREAM_HISTORY_CAPACITY": str(STREAM_HISTORY),
        "TOKIO_WORKER_THREADS": str(THREADS),
        **({} if sys.stderr.isatty() else {"NO_COLOR": "1"}),
        **os.environ,
        "PATH": _before(Path(sys.executable).parent, "PATH"),
        "PYTHONPATH": _before(ROOT, "PYTHONPATH"),
        "COG_PREDICT_TYPE_STUB": f"{source(predictor)}:Predictor",
        "PORT": str(port),
    }
    return [sys.executable, "-m", "cog.server.http", "--host", host], environment, folder


def check_cog_folder(folder: Path) -> None:
    """Raises MusicGenError if this user cannot write to the folder where Cog keeps predictions."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise MusicGenError(
            f"Cog needs the folder {folder}, but {place} belongs to {_owner(place)} and is not "
            f"writable for you. Let that user or root run: rm -r {place}, or chmod -R a+rwX {place}"
        )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # the user has no name
        return f"user {path.stat().st_uid}"


def serve(predictor: str, host: str, port: int) -> None:
    """Run the server until it ends or this process is interrupted.

    Prints one line when the server is ready, and one for each prediction; or Cog's own log, if
    LOG_FORMAT is in the environment. Raises MusicGenError if the server fails.
    """
    own_log = "LOG_FORMAT" in os.environ
    log = nullcontext() if own_log else logs.read_by(logs.Requests(sys.stderr))
    shown = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    with log as stream, _started(predictor, host, port, shown, stream) as process:
        print(f"Ready: {shown} (API reference: {shown}/docs, ctrl-C stops it)", flush=True)
        if process.wait():
            raise MusicGenError(f"The server stopped with exit code {process.returncode}.")


@contextmanager
def running(
    predictor: str, log: IO[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server for `predictor` on a free port, yield its URL when it is ready, then stop it.

    The server writes its log to `log`, or to this process's stderr. Raises MusicGenError if its
    setup fails.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _started(predictor, "127.0.0.1", port, url, log, environment):
        yield url


@contextmanager
def _started(
    predictor: str,
    host: str,
    port: int,
    url: str,
    log: IO[str] | None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a server that is ready; stopped at the end."""
    key = upload_key.take()
    command, defaults, folder = prepare(predictor, host, port)
    with temporary.folder() as own, upload_key.pipe(key) as (secret, descriptors):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=defaults | {"TMPDIR": str(own.path)} | secret | dict(environment or {}),
            stdout=log,
            stderr=log,
            pass_fds=[own.lock, *descriptors],
            # ctrl-C must not reach Cog's worker, which would then take 10 s to end.
            start_new_session=True,
        )
        group = processes.Group(process)
        grace: float = STOP_SECONDS
        try:
            wait_until_ready(url, process)
            yield process
        except KeyboardInterrupt:
            grace = INTERRUPT_SECONDS
            raise
        finally:
            _shut_down(process, url, grace)
            group.end(grace)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server's setup() has finished. Raises MusicGenError, with the reason, if it
    failed or the server has ended, as it does if another process has its port."""
    client = Client(url)
    while process.poll() is None:
        with suppress(UnreachableError):
            health = client.health()
            # Another server may have taken the port since it was found to be free. Finding out
            # takes long, so not at each look.
            if health["status"] != "STARTING" and listens(process, url):
                if health["status"] == "READY":
                    return
                if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                    raise MusicGenError(f"The server could not start: {setup_error(health)}")
                if health["status"] == "UNHEALTHY":
                    raise MusicGenError("The server could not start: its worker process has died.")
        time.sleep(0.1)
    raise MusicGenError(f"The server stopped with exit code {process.returncode}.")


def setup_error(health: Mapping[str, Any]) -> str:
    """The reason in the health of a server whose setup() failed."""
    return PREFIXES.sub("", health.get("setup", {}).get("logs", "").strip())


def stop(process: subprocess.Popen[bytes], url: str) -> None:
    """End a server that was started with the command of `prepare` or by scripts/serve."""
    _shut_down(process, url)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shut_down(process: subprocess.Popen[bytes], url: str, timeout: float | None = None) -> None:
    """Ask a server to end. A server of another process at the same address is left alone."""
    with suppress(ServerError, TimeoutError):
        if listens(process, url):
            Client(url).shutdown(timeout=timeout)


def listens(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether a process or a child of it accepts connections at the port of `url`."""
    import psutil  # the commands that use a running server do not need it

    try:
        parent = psutil.Process(process.pid)
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == urlsplit(url).port
            for one in (parent, *parent.children(recursive=True))
            for connection in one.net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # a server of another user cannot be looked at
        return True


def _before(folder: Path, variable: str) -> str:
    """The search path in an environment variable, with `folder` before its other folders."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now. Another process may take it before a server does,
    which `wait_until_ready` notices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
