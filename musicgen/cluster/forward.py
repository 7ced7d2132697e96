"""Forwards one HTTP request and streams its response back. Independent of predictions."""

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import IO

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MAX_BODY = 100 << 20  # bytes; Cog's own limit
IN_MEMORY = 1 << 20  # bytes of a body; longer bodies are kept in a temporary file
CHUNK = 1 << 16
# Headers that belong to one connection, and are not forwarded. Ray's proxy refuses upgrades itself.
HOP = {
    b"connection",
    b"content-length",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"transfer-encoding",
    b"upgrade",
}
NOT_RETURNED = HOP - {b"content-length"} | {b"date"}  # Ray's proxy sets its own date

Body = IO[bytes]


class TooLargeError(Exception):
    """The body is longer than MAX_BODY."""


@asynccontextmanager
async def read_body(request: Request) -> AsyncIterator[Body]:
    """The whole body. Raises TooLargeError."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        async for chunk in request.stream():
            if body.tell() + len(chunk) > MAX_BODY:
                raise TooLargeError
            body.write(chunk)
        yield body


@asynccontextmanager
async def forward(
    client: httpx.AsyncClient, url: str, request: Request, body: Body
) -> AsyncIterator[httpx.Response]:
    """The response of the server at `url` to a request, with path and query unchanged. Its body is
    not read yet.

    Raises httpx.ConnectError if the server has not received the request, another httpx.HTTPError if
    it may have.
    """
    # As bytes, since values need not be ASCII.
    headers = [(key, value) for key, value in request.headers.raw if key.lower() not in HOP]
    size = body.seek(0, 2)
    async with client.stream(
        request.method,
        httpx.URL(url).copy_with(raw_path=raw_path(request)),
        headers=[*headers, (b"content-length", b"%d" % size)],
        content=_chunks(body),
        timeout=None,
    ) as answer:
        yield answer


async def _chunks(body: Body) -> AsyncIterator[bytes]:
    body.seek(0)
    while chunk := body.read(CHUNK):
        yield chunk


def raw_path(request: Request) -> bytes:
    """Path and query of a request as the client sent them, with escapes such as %2F."""
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return path + b"?" + query if query else path


class Streamed(Response):
    """Streams a server's response to the client and to `see`, then closes `held`."""

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
            if key.lower() not in NOT_RETURNED
        ]
        self.answer = answer
        self.held = held or AsyncExitStack()
        self.see = see

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
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
