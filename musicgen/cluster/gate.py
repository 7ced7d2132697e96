"""The HTTP proxy before all servers. It offers Cog's API and sends each prediction to a free slot.

Requests are forwarded unchanged; those with inputs of an unknown name are refused. The gate reads a
whole body before it asks for a slot, so that a slow upload holds none. A server that answers 409 or
503 (it has just lost its slot, or is broken) has not run the prediction, and the gate offers it
again. A prediction that a server has accepted is never sent a second time: if that server dies, the
response is 502.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from time import monotonic, time
from urllib.parse import unquote

import httpx
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from musicgen.cluster.forward import Body, Streamed, TooLargeError, forward, raw_path, read_body
from musicgen.cluster.inputs import check
from musicgen.cluster.metrics import Metrics, Record
from musicgen.cluster.replica import GOOD, running
from musicgen.errors import MusicGenError

NOT_ACCEPTED = (409, 503)
PAUSE = 0.2  # seconds until a prediction that was not accepted is offered again
RETRY_AFTER = 5  # seconds
FORGOTTEN_AFTER = 10  # seconds without an announcement of a server


class Gate:
    """The proxy. It knows the server of each running prediction that has an id."""

    def __init__(self, replicas: DeploymentHandle, inputs: Sequence[str]) -> None:
        """`inputs` are the names of the predictor's inputs."""
        self.inputs = inputs
        self.started = time()
        self.started_monotonic = monotonic()
        self.replicas = replicas
        self.client = httpx.AsyncClient(timeout=10, trust_env=False)
        self.metrics = Metrics()
        self.waiting: dict[str, asyncio.Task[object]] = {}  # by id, until there is a response
        self.running: dict[str, str] = {}  # id -> the server's address
        self.followers: set[asyncio.Task[None]] = set()
        self.announced: dict[str, float] = {}  # address of a server -> time of its announcement

    async def announce(self, url: str) -> float:
        """Note a healthy server, which announces itself every second; the gate's start time."""
        now = monotonic()
        self.announced = {
            other: at for other, at in self.announced.items() if now - at < FORGOTTEN_AFTER
        } | {url: now}
        return self.started

    async def __call__(self, request: Request) -> Response:
        """The response of a server, or the gate's own if no server can respond."""
        path = raw_path(request).partition(b"?")[0].decode()
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and request.method == method:
                try:
                    return await answer(self, request, *map(unquote, match.groups()))
                except TooLargeError:
                    return error(413, "The body has more than 100 MiB.")
                except BackPressureError:
                    wait = {"Retry-After": str(RETRY_AFTER)}
                    return error(503, "Too many requests are waiting.", wait)
                except DeploymentUnavailableError:
                    return error(503, "No server could be started.")
                except httpx.HTTPError:
                    return error(502, "The server that ran this request has ended.")
        return error(404, "Not Found")

    async def predict(self, request: Request, name: str | None = None) -> Response:
        """Run one prediction on a server that has a slot."""
        async with AsyncExitStack() as stack:
            record = stack.enter_context(self.metrics.track())
            body = await stack.enter_async_context(read_body(request))
            problems = await check(body, self.inputs)
            if problems:
                return error(422, problems)
            url, answer = await self.place(request, body, name, record, stack)
            if answer.status_code == httpx.codes.ACCEPTED:
                record.add(await answer.aread())
                name = answer.json()["id"]
                stack.enter_context(self.known(name, url))
                follower = asyncio.create_task(self.follow(name, url, stack.pop_all()))
                self.followers.add(follower)
                follower.add_done_callback(self.followers.discard)
            return Streamed(answer, stack.pop_all(), record.add)

    async def place(
        self,
        request: Request,
        body: Body,
        name: str | None,
        record: Record,
        stack: AsyncExitStack,
    ) -> tuple[str, httpx.Response]:
        """The server that accepted the prediction, and its response; `stack` holds the slot."""
        while True:
            async with AsyncExitStack() as attempt:
                with suppress(httpx.ConnectError, MusicGenError, RayActorError):
                    url = await attempt.enter_async_context(self.lease())
                    attempt.enter_context(self.known(name, url))
                    self.metrics.set_state(record, "running")
                    answer = await attempt.enter_async_context(
                        forward(self.client, url, request, body)
                    )
                    if answer.status_code not in NOT_ACCEPTED:
                        stack.push_async_exit(attempt.pop_all())
                        return url, answer
            self.metrics.set_state(record, "waiting")
            await asyncio.sleep(PAUSE)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[str]:
        """Wait for a slot; the server's address. Raises BackPressureError if too many wait."""
        lease = self.replicas.options(method_name="lease", stream=True).remote(self.started)
        try:
            yield await anext(lease)
        finally:
            lease.cancel()

    @contextmanager
    def known(self, name: str | None, url: str) -> Iterator[None]:
        """While open, requests for the prediction `name` are sent to `url`."""
        if name is None:
            yield
            return
        self.running[name] = url
        try:
            yield
        finally:
            self.running.pop(name, None)

    async def follow(self, name: str, url: str, slot: AsyncExitStack) -> None:
        """Hold the slot of an asynchronous prediction until it has ended."""
        async with slot:
            with suppress(httpx.HTTPError):
                while await running(self.client, url, name):
                    await asyncio.sleep(1)

    async def put(self, request: Request, name: str) -> Response:
        """The state of the prediction with an id or, if there is none, a new prediction."""
        if name in self.running:
            return await self.pass_on(self.running[name], request)
        if name in self.waiting:
            return JSONResponse({"id": name, "status": "starting"}, httpx.codes.ACCEPTED)
        task = asyncio.current_task()
        assert task
        self.waiting[name] = task
        try:
            # Only a gate that was started a moment ago may not know of a prediction.
            if monotonic() - self.started_monotonic < FORGOTTEN_AFTER:
                for url in await self.ask_all(name):
                    return await self.pass_on(url, request)
            return await self.predict(request, name)
        except asyncio.CancelledError as exc:
            if name not in exc.args:
                raise
            task.uncancel()
            return JSONResponse({"id": name, "status": "canceled"})
        finally:
            self.waiting.pop(name, None)

    async def cancel(self, request: Request, name: str) -> Response:
        """Cancel a prediction that waits here or runs on a server."""
        if name in self.running:
            return await self.pass_on(self.running[name], request)
        if name in self.waiting:
            self.waiting[name].cancel(name)
            return JSONResponse({})
        # The client may have the id from its webhook or its request's body, or from before this
        # gate was started.
        for url in await self.ask_all(name):
            return await self.pass_on(url, request)
        return JSONResponse({}, httpx.codes.NOT_FOUND)

    async def ask_all(self, name: str) -> list[str]:
        """Ask all servers for the prediction `name`; the one that is running it, if any."""
        urls = list(self.announced)
        found = await asyncio.gather(
            *(running(self.client, url, name) for url in urls), return_exceptions=True
        )
        return [url for url, holds in zip(urls, found, strict=True) if holds is True]

    async def get(self, request: Request) -> Response:
        """The response of any server, as they are all equal; for the health, of a healthy one."""
        health = request.scope["path"] == "/health-check"
        for url in self.announced:
            with suppress(httpx.HTTPError):
                answer = await self.client.get(url + request.scope["path"])
                if not health or answer.json()["status"] in GOOD:
                    return Streamed(answer)
        if health:
            return JSONResponse({"status": "STARTING"})
        async with self.lease() as url:
            return await self.pass_on(url, request)

    async def pass_on(self, url: str, request: Request) -> Response:
        """The response of the server at `url` to a request that needs no slot."""
        async with AsyncExitStack() as stack:
            body = await stack.enter_async_context(read_body(request))
            answer = await stack.enter_async_context(forward(self.client, url, request, body))
            return Streamed(answer, stack.pop_all())


# The paths that clients use. Cog's /shutdown is missing on purpose.
ROUTES: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
    ("POST", r"/predictions", Gate.predict),
    ("PUT", r"/predictions/([^/]+)", Gate.put),
    ("POST", r"/predictions/([^/]+)/cancel", Gate.cancel),
    ("GET", r"/|/docs|/health-check|/openapi\.json", Gate.get),
]


def error(status: int, detail: object, headers: dict[str, str] | None = None) -> Response:
    """An error of the gate itself, in the form of Cog's errors."""
    return JSONResponse({"detail": detail}, status, headers)
