"""Speaks Cog's HTTP contract for all servers at once: a prediction goes to one that has room.

What is sent on is what came. A body is taken in before a place is asked for, so that nobody holds
one while he uploads. A server that does not take a prediction (it is just freeing the place, or
broken) has not run it, and the prediction is offered again. What a server has taken is never sent
a second time: when that server ends, the answer is 502.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from time import monotonic, time

import httpx
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from musicgen.cluster.forward import Body, Streamed, TooLargeError, received, sent
from musicgen.cluster.metrics import Course, Metrics
from musicgen.cluster.replica import GOOD, running
from musicgen.errors import MusicGenError

NOT_TAKEN = (409, 503)
PAUSE = 0.2  # seconds until a prediction that was not taken is offered again
RETRY_AFTER = 5  # seconds
FORGOTTEN_AFTER = 10  # seconds without a word from a server


class Gate:
    """The way in. Knows which server runs which of the predictions that callers have named."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self.started = time()
        self.replicas = replicas
        self.client = httpx.AsyncClient(timeout=10, trust_env=False)
        self.metrics = Metrics()
        self.waiting: dict[str, asyncio.Task[object]] = {}  # by id, until there is an answer
        self.running: dict[str, str] = {}  # by id, the server's address
        self.followers: set[asyncio.Task[None]] = set()
        self.heard: dict[str, float] = {}  # when each server was last heard of, by address

    async def announce(self, url: str) -> float:
        """Hear of a server, at every check of its health; say when this gate was started."""
        now = monotonic()
        self.heard = {
            other: at for other, at in self.heard.items() if now - at < FORGOTTEN_AFTER
        } | {url: now}
        return self.started

    async def __call__(self, request: Request) -> Response:
        """The answer of a server, or of the gate if none can give one."""
        for method, path, answer in ROUTES:
            match = re.fullmatch(path, request.scope["path"])
            if match and request.method == method:
                try:
                    return await answer(self, request, *match.groups())
                except TooLargeError:
                    return said(413, "The body has more than 100 MiB.")
                except BackPressureError:
                    return said(503, "Too many requests wait.", {"Retry-After": str(RETRY_AFTER)})
                except DeploymentUnavailableError:
                    return said(503, "No server can be started.")
                except httpx.HTTPError:
                    return said(502, "The server that had this request has ended.")
        return said(404, "Not Found")

    async def predict(self, request: Request, name: str | None = None) -> Response:
        """One prediction, by whichever server has room."""
        async with AsyncExitStack() as stack:
            course = stack.enter_context(self.metrics.course())
            body = await stack.enter_async_context(received(request))
            url, answer = await self.placed(request, body, name, course, stack)
            if answer.status_code == httpx.codes.ACCEPTED:
                course.see(await answer.aread())
                follower = asyncio.create_task(
                    self.follow(answer.json()["id"], url, stack.pop_all())
                )
                self.followers.add(follower)
                follower.add_done_callback(self.followers.discard)
            return Streamed(answer, stack.pop_all(), course.see)

    async def placed(
        self,
        request: Request,
        body: Body,
        name: str | None,
        course: Course,
        stack: AsyncExitStack,
    ) -> tuple[str, httpx.Response]:
        """The server that took the prediction and its answer; `stack` holds the place there."""
        while True:
            async with AsyncExitStack() as attempt:
                with suppress(httpx.ConnectError, MusicGenError, RayActorError):
                    url = await attempt.enter_async_context(self.lease())
                    attempt.enter_context(self.known(name, url))
                    self.metrics.move(course, "running")
                    answer = await attempt.enter_async_context(
                        sent(self.client, url, request, body)
                    )
                    if answer.status_code not in NOT_TAKEN:
                        stack.push_async_exit(attempt.pop_all())
                        return url, answer
            self.metrics.move(course, "waiting")
            await asyncio.sleep(PAUSE)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[str]:
        """A place at a server, waited for; its address. Raises BackPressureError: too many wait."""
        lease = self.replicas.options(method_name="lease", stream=True).remote(self.started)
        try:
            yield await anext(lease)
        finally:
            lease.cancel()

    @contextmanager
    def known(self, name: str | None, url: str) -> Iterator[None]:
        """Let those who ask for `name` find it at `url`."""
        if name is None:
            yield
            return
        self.running[name] = url
        try:
            yield
        finally:
            del self.running[name]

    async def follow(self, name: str, url: str, place: AsyncExitStack) -> None:
        """Keep the place of a prediction whose caller does not wait, until it has ended."""
        async with place:
            with suppress(httpx.HTTPError):
                while await running(self.client, url, name):
                    await asyncio.sleep(1)

    async def put(self, request: Request, name: str) -> Response:
        """The prediction of that id: what its server says of it or, if there is none, a new one."""
        if name in self.running:
            return await self.passed(self.running[name], request)
        if name in self.waiting:
            return JSONResponse({"id": name, "status": "starting"}, httpx.codes.ACCEPTED)
        task = asyncio.current_task()
        assert task
        self.waiting[name] = task
        try:
            for url in await self.holders(name):
                return await self.passed(url, request)
            return await self.predict(request, name)
        except asyncio.CancelledError as exc:
            if name not in exc.args:
                raise
            task.uncancel()
            return JSONResponse({"id": name, "status": "canceled"})
        finally:
            self.waiting.pop(name, None)

    async def cancel(self, request: Request, name: str) -> Response:
        """Cancel what waits here or runs at any server."""
        if name in self.waiting and name not in self.running:
            self.waiting[name].cancel(name)
            return JSONResponse({})
        for url in await self.holders(name):
            return await self.passed(url, request)
        return JSONResponse({}, httpx.codes.NOT_FOUND)

    async def holders(self, name: str) -> list[str]:
        """The server that runs the prediction of that id, if there is one."""
        if name in self.running:
            return [self.running[name]]
        # Not named by its caller, or by one who came before this gate was started anew.
        urls = list(self.heard)
        found = await asyncio.gather(
            *(running(self.client, url, name) for url in urls), return_exceptions=True
        )
        return [url for url, holds in zip(urls, found, strict=True) if holds is True]

    async def get(self, request: Request) -> Response:
        """What every server says alike; of the health, the first that is good."""
        health = request.scope["path"] == "/health-check"
        for url in self.heard:
            with suppress(httpx.HTTPError):
                answer = await self.client.get(url + request.scope["path"])
                if not health or answer.json()["status"] in GOOD:
                    return Streamed(answer)
        if health:
            return JSONResponse({"status": "STARTING"})
        async with self.lease() as url:
            return await self.passed(url, request)

    async def passed(self, url: str, request: Request) -> Response:
        """The answer of the server at `url` to what takes no place there."""
        async with AsyncExitStack() as stack:
            body = await stack.enter_async_context(received(request))
            answer = await stack.enter_async_context(sent(self.client, url, request, body))
            return Streamed(answer, stack.pop_all())


# What a client uses. Cog's /shutdown is not among it.
ROUTES: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
    ("POST", r"/predictions", Gate.predict),
    ("PUT", r"/predictions/([^/]+)", Gate.put),
    ("POST", r"/predictions/([^/]+)/cancel", Gate.cancel),
    ("GET", r"/|/docs|/health-check|/openapi\.json", Gate.get),
]


def said(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An answer of the gate itself, in the form of Cog's."""
    return JSONResponse({"detail": detail}, status, headers)
