"""Keeps one Cog server for Ray. Sees no request: it lends the server's address."""

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
# Waits, in a session of its own, until whoever holds the other end of its stdin is gone, and then
# kills a process group. It is nobody's child, as Ray kills the children of a replica that ends.
GUARD = 'exec 3<&0; (read -r _ <&3; kill -9 "-$0" 2>&-) &'
# No predictor takes it: Cog tells whether the id is running, and otherwise refuses.
INVALID = {"input": {"duration": 0}}


class Replica:
    """One Cog server, and the leases of what it runs: Ray counts them as its requests."""

    def __init__(self, predictor: str, environment: dict[str, str]) -> None:
        """Return when the server is ready. Raises MusicGenError if it cannot start."""
        host, port = ray.util.get_node_ip_address(), server.free_port()
        os.environ.update(environment)
        command, variables, folder = server.prepare(predictor, host, port)
        self.url = f"http://{host}:{port}"
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.guard = _guard(self.process.pid)
        try:
            server.wait_until_ready(self.url, self.process)
        except MusicGenError:
            self.guard.close()
            raise
        self.client = httpx.AsyncClient(timeout=10, trust_env=False)
        self.newest = 0.0  # when the youngest gate was started
        self.announced: asyncio.Future[None] | None = None
        self.gate = serve.get_deployment_handle("gate", serve.get_replica_context().app_name)

    async def lease(self, gate: float) -> AsyncIterator[str]:
        """The server's address, for one prediction of the gate that was started then.

        The place is taken until that gate cancels or, as one that died cannot, is followed by
        another. Raises MusicGenError when the server can predict no more.
        """
        await self.check()
        yield self.url
        while self.newest <= gate:
            await asyncio.sleep(1)

    async def check_health(self) -> None:
        """Tell the gate of a server that is well; of another tell Ray, which replaces this."""
        await self.check()
        if self.announced is None or self.announced.done():
            # Not awaited: without a gate for a while, this is as healthy.
            self.announced = asyncio.create_task(self.announce())

    async def announce(self) -> None:
        """Tell the gate of this server, and learn when it was started."""
        with suppress(RayError, RayServeException):
            self.newest = max(self.newest, await self.gate.announce.remote(self.url))

    async def check(self) -> None:
        """Raises MusicGenError when the server can predict no more."""
        try:
            status = (await self.client.get(f"{self.url}/health-check")).json()["status"]
        except httpx.HTTPError as exc:
            raise MusicGenError("The server does not answer.") from exc
        if status not in GOOD:
            raise MusicGenError(f"The server is {status}.")

    def __del__(self) -> None:
        """Let the server finish what it runs; then end all of it."""
        with suppress(AttributeError):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait()
            self.guard.close()


async def running(client: httpx.AsyncClient, url: str, prediction: str) -> bool:
    """Whether the server at `url` runs a prediction of that id."""
    path = f"/predictions/{quote(prediction, safe='')}"
    answer = await client.put(url + path, json=INVALID)
    return answer.status_code == httpx.codes.ACCEPTED


def _guard(group: int) -> IO[bytes]:
    """A pipe: the process group is killed when it is closed or this process ends, however."""
    shell = subprocess.Popen(
        ["sh", "-c", GUARD, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
    shell.wait()
    assert shell.stdin
    return shell.stdin
