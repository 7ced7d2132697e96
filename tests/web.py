"""HTTP servers for the tests, each on a free port of loopback."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from ssl import SSLContext
from typing import Any

from gate import Gate


class Server(ThreadingHTTPServer):
    """A server that knows its address. A handler has it as `self.server`."""

    url: str


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], tls: SSLContext | None = None
) -> Iterator[Server]:
    """A server with a thread for each connection; https if `tls` is given."""
    with Server(("127.0.0.1", 0), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], tls: SSLContext | None = None
) -> Iterator[str]:
    """The URL of such a server."""
    with serving(handler, tls) as server:
        yield server.url


@dataclass
class Web:
    """A file server. At `url` it has /whole/NAME; /half/NAME, which ends too early; and /held/NAME,
    whose second half waits at `gate`. While it waits, it sends a byte a second, because Cog ends a
    silent download.
    """

    url: str = ""
    gate: Gate = field(default_factory=Gate)


@contextmanager
def web_server(files: Mapping[str, bytes]) -> Iterator[Web]:
    """A `Web` that serves these files, name -> content."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, manner, name = self.path.split("/")
            content = files.get(name)
            self.send_response_only(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content is None:
                return
            rest = BytesIO(content)
            self.wfile.write(rest.read(len(content) // 2))
            if manner == "half":
                return
            if manner == "held":
                web.gate.pass_through(lambda: self.wfile.write(rest.read(1)))
            self.wfile.write(rest.read())

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # the client has disconnected
                super().handle()

    with listening(Handler) as web.url:
        try:
            yield web
        finally:
            web.gate.open()
