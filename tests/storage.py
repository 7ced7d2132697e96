"""A real storage server in its own process, and a proxy in front of it that injects faults.

Both are context managers. Set STORAGE_EMULATOR_HOST to the URL.
"""

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.error import URLError
from urllib.request import urlopen

from gate import Gate
from web import listening

# Bytes of a file. Above 8 MiB the client takes two requests (a resumable session) instead of one.
SMALL, LARGE = 100_000, 9 * 2**20


@dataclass(frozen=True)
class Drop:
    """Reset the connection after so many bytes of the body."""

    after: int


# The fault that one request meets. None: no fault. A number: an answer with that status.
# drop: the connection is reset after half of the body. lose: the request is forwarded, but its
# answer is not sent back. corrupt: a byte in the middle of the body changes. stall: there is no
# answer. sip: the body is read slowly, 50 kB a second. drip: the answer is sent byte by byte,
# without end. A gate: the request waits there.
Fault = int | Drop | Gate | Literal["drop", "lose", "corrupt", "stall", "sip", "drip"] | None


@contextmanager
def storage_server(bucket: str = "songs") -> Iterator[str]:
    """The URL of gcp-storage-emulator, in memory, on a free port, with one bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--in-memory", "--quiet", "--default-bucket", bucket]
    process = subprocess.Popen(command)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, f"the storage server ended with {process.returncode}"
        try:
            urlopen(url).close()
            return
        except URLError:
            time.sleep(0.1)
    raise AssertionError("the storage server did not start within 30 s")


@dataclass(frozen=True)
class Seen:
    """A request as the proxy received it; its body is empty if it is never read whole."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Proxy:
    """Forwards to a storage server. The n-th request meets the n-th fault, later requests none."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    _faults: Iterator[Fault] = field(default_factory=lambda: iter(()))

    def inject(self, faults: Iterable[Fault]) -> None:
        """Use these faults from now on; `itertools.repeat(503)` fails every request."""
        self._faults = iter(faults)


@contextmanager
def fault_proxy(upstream: str) -> Iterator[Proxy]:
    """A `Proxy` in front of the server at the URL `upstream`, on a free port."""
    proxy, closing = Proxy(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            fault = next(proxy._faults, None)
            length = int(self.headers.get("Content-Length", 0))
            if fault == "sip":
                self.note(b"")
                while self.rfile.read(1000) and not closing.wait(0.02):
                    pass
                return
            if fault == "drop":
                fault = Drop(length // 2)
            body = self.rfile.read(min(fault.after, length) if isinstance(fault, Drop) else length)
            self.note(body)
            if isinstance(fault, int):
                self.reply(fault, {}, b"{}")
            elif fault == "drip":
                with suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                    while not closing.wait(0.02):
                        self.wfile.write(b".")
            elif isinstance(fault, Drop):
                # Linger 0: close() resets the connection at once.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif fault == "stall":
                closing.wait()
            else:
                if isinstance(fault, Gate):
                    fault.pass_through()
                if fault == "corrupt":
                    body = (
                        body[: length // 2]
                        + bytes([body[length // 2] ^ 1])
                        + body[length // 2 + 1 :]
                    )
                answer = self.forward(body)
                if fault != "lose":
                    self.reply(*answer)

        def note(self, body: bytes) -> None:
            proxy.seen.append(Seen(self.command, self.path, dict(self.headers), body))

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            # The client's Host header is forwarded, so that URLs in the answer name the proxy.
            connection = http.client.HTTPConnection(upstream.removeprefix("http://"))
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815

    with listening(Handler) as proxy.url:
        try:
            yield proxy
        finally:
            closing.set()


def chain(exc: BaseException) -> str:
    """All text that a log could contain about an error: messages, reprs, every cause."""
    return "".join(traceback.format_exception(exc)) + str(exc) + repr(exc) + repr(exc.args)
