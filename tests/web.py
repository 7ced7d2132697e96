"""A web server for inputs: one that gives them whole, half, or only when it is told to."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gate import Gate


@dataclass
class Web:
    """At `url`: /whole/NAME, /half/NAME, which ends too early, and /held/NAME, whose second half
    waits at `gate`.
    """

    url: str = ""
    gate: Gate = field(default_factory=Gate)


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on a free port, with a thread for each connection."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def web_server(files: Mapping[str, bytes]) -> Iterator[Web]:
    """A `Web` on a free port with files of these names."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, manner, name = self.path.split("/")
            content = files[name]
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            if manner == "half":
                return
            if manner == "held":
                web.gate.pass_through()
            self.wfile.write(content[half:])

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked has gone
                super().handle()

    with listening(Handler) as web.url:
        try:
            yield web
        finally:
            web.gate.open()
