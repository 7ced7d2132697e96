"""Sends one HTTP request on, and its answer back, piece by piece. Knows no prediction."""

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import IO

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MAX_BODY = 100 << 20  # bytes; Cog's own limit
IN_MEMORY = 1 << 20  # bytes of a body; a longer one goes to the disk
CHUNK = 1 << 16
OWN = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}  # of one hop
NOT_ANSWERED = OWN - {"content-length"} | {"date"}  # the proxy dates its answers itself

Body = IO[bytes]


class TooLargeError(Exception):
    """A body above MAX_BODY."""


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Body]:
    """The whole body. Raises TooLargeError."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        async for chunk in request.stream():
            if body.tell() + len(chunk) > MAX_BODY:
                raise TooLargeError
            body.write(chunk)
        yield body


@asynccontextmanager
async def sent(
    client: httpx.AsyncClient, url: str, request: Request, body: Body
) -> AsyncIterator[httpx.Response]:
    """The beginning of the answer that the server at `url` gives to a request.

    Raises httpx.ConnectError if the server never saw it, another httpx.HTTPError if it may have.
    """
    headers = [(key, value) for key, value in request.headers.items() if key not in OWN]
    size = body.seek(0, 2)
    async with client.stream(
        request.method,
        url + request.url.path,
        headers=[*headers, ("content-length", str(size))],
        content=_chunks(body),
        timeout=None,
    ) as answer:
        yield answer


async def _chunks(body: Body) -> AsyncIterator[bytes]:
    body.seek(0)
    while chunk := body.read(CHUNK):
        yield chunk


class Streamed(Response):
    """A server's answer, sent on as it comes and shown to `see`; then `held` is let go."""

    def __init__(
        self,
        answer: httpx.Response,
        held: AsyncExitStack | None = None,
        see: Callable[[bytes], object] = len,
    ) -> None:
        super().__init__(status_code=answer.status_code)
        self.raw_headers = [
            (key.lower(), value)
            for key, value in answer.headers.raw
            if key.decode().lower() not in NOT_ANSWERED
        ]
        self.answer = answer
        self.held = held or AsyncExitStack()
        self.see = see

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self.held:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for chunk in self._chunks():
                self.see(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self.answer.is_stream_consumed:
            yield self.answer.content
        else:
            async for chunk in self.answer.aiter_raw():
                yield chunk
