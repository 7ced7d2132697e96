"""Runs one Cog server for Ray. Requests do not pass through it: it lends the server's address."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import IO
from urllib.parse import quote

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from musicgen.commands import server
from musicgen.errors import MusicGenError

GOOD = ("READY", "BUSY")
STOP_SECONDS = 30  # for a server to end after SIGTERM; Ray has waited for its predictions before
# A shell that kills a process group when its stdin is closed, as by the death of this process. A
# line on stdin ends the shell without a kill. It detaches from this process, since Ray kills the
# children of a replica that ends.
GUARD = 'exec 3<&0; (read -r _ <&3 || kill -9 "-$0" 2>&-) &'
# Every predictor refuses this input. If the prediction's id is running, Cog answers 202 instead.
INVALID = {"input": {"duration": 0}}


class Replica:
    """One Cog server, and a lease for each of its predictions. Ray counts leases as requests."""

    def __init__(self, predictor: str, environment: dict[str, str]) -> None:
        """Return when the server is ready. Raises MusicGenError if it cannot start."""
        host, port = ray.util.get_node_ip_address(), server.free_port()
        os.environ.update(environment)
        command, variables, folder = server.prepare(predictor, host, port)
        self.url = f"http://{host}:{port}"
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.guard = start_guard(self.process.pid)
        try:
            server.wait_until_ready(self.url, self.process)
        except MusicGenError:
            stop(self.process, self.guard)
            raise
        self.client = httpx.AsyncClient(timeout=10, trust_env=False)
        self.newest = 0.0  # start time of the newest gate
        self.announced: asyncio.Future[None] | None = None
        self.gate = serve.get_deployment_handle("gate", serve.get_replica_context().app_name)

    async def lease(self, gate: float) -> AsyncIterator[str]:
        """Yield the server's address, for one prediction of the gate that was started at `gate`.

        The slot is held until that gate cancels the lease or, since a dead gate cannot, until a
        newer gate exists. Raises MusicGenError if the server cannot run predictions any more.
        """
        await self.check()
        yield self.url
        while self.newest <= gate:
            await asyncio.sleep(1)

    async def check_health(self) -> None:
        """Announce a healthy server to the gate. Raises for an unhealthy one: Ray replaces it."""
        await self.check()
        if self.announced is None or self.announced.done():
            # Not awaited, since a missing gate does not make this replica unhealthy.
            self.announced = asyncio.create_task(self.announce())

    async def announce(self) -> None:
        """Tell the gate this server's address; it returns its own start time."""
        with suppress(RayError, RayServeException):
            self.newest = max(self.newest, await self.gate.announce.remote(self.url))

    async def check(self) -> None:
        """Raises MusicGenError if the server cannot run predictions any more."""
        try:
            status = (await self.client.get(f"{self.url}/health-check")).json()["status"]
        except httpx.HTTPError as exc:
            raise MusicGenError("The server does not answer.") from exc
        if status not in GOOD:
            raise MusicGenError(f"The server is {status}.")

    def __del__(self) -> None:
        """Stop the server. Ray calls this when the replica's predictions have ended."""
        with suppress(AttributeError):  # __init__ has failed early
            stop(self.process, self.guard)


def stop(process: subprocess.Popen[bytes], guard: IO[bytes]) -> None:
    """End a server and its process group, then the guard."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The group's number may be given to another group from now on: the guard must not kill that.
    with suppress(BrokenPipeError), guard:
        guard.write(b"done\n")


async def running(client: httpx.AsyncClient, url: str, prediction: str) -> bool:
    """Whether the server at `url` is running the prediction with an id."""
    path = f"/predictions/{quote(prediction, safe='')}"
    answer = await client.put(url + path, json=INVALID)
    return answer.status_code == httpx.codes.ACCEPTED


def start_guard(group: int) -> IO[bytes]:
    """A pipe to a GUARD of a process group, which is killed if this process dies in any way."""
    shell = subprocess.Popen(
        ["sh", "-c", GUARD, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
    shell.wait()
    assert shell.stdin
    return shell.stdin
