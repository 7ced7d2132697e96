"""Runs one Cog server for Ray. Requests do not pass through it: it lends the server's address."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from urllib.parse import quote

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from musicgen.commands import processes, server, temporary
from musicgen.errors import MusicGenError
from musicgen.serving import upload_key

GOOD = ("READY", "BUSY")
STOP_SECONDS = 30  # for a server to end after SIGTERM; Ray has waited for its predictions before
# Every predictor refuses this input. If the prediction's id is running, Cog answers 202 instead.
INVALID = {"input": {"duration": 0}}


class Replica:
    """One Cog server, and a lease for each of its predictions. Ray counts leases as requests."""

    def __init__(self, predictor: str, environment: dict[str, str], key: str | None) -> None:
        """Return when the server is ready. Raises MusicGenError if it cannot start."""
        own_key = upload_key.take()
        host, port = ray.util.get_node_ip_address(), server.free_port()
        os.environ.update(environment)
        command, variables, folder = server.prepare(predictor, host, port)
        self.url = f"http://{host}:{port}"
        self.resources = ExitStack()
        own = self.resources.enter_context(temporary.folder())
        with upload_key.pipe(own_key if key is None else key) as (secret, descriptors):
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**variables, "TMPDIR": str(own.path), **secret},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[own.lock, *descriptors],
            )
        self.group = processes.Group(self.process)
        try:
            server.wait_until_ready(self.url, self.process)
        except MusicGenError:
            self.__del__()
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
            self.process.terminate()
            self.group.end(STOP_SECONDS)
            self.resources.close()


async def running(client: httpx.AsyncClient, url: str, prediction: str) -> bool:
    """Whether the server at `url` is running the prediction with an id."""
    path = f"/predictions/{quote(prediction, safe='')}"
    answer = await client.put(url + path, json=INVALID)
    return answer.status_code == httpx.codes.ACCEPTED
