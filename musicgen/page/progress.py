"""Progress of predictions, from the logs that a Cog server posts to this process.

Cog tells progress in no other way to a client that did not come with a stream: GET of a prediction
does not exist, and server-sent events are for predictors that stream their output. A server that
cannot reach this process costs the bar alone: the answer comes by the request itself.
"""

import json
import re
import secrets
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# tqdm's "decode:  47%|████▋     | 472/1012 [00:01<00:01, 471.72step/s]"
BAR = re.compile(r"(\w[\w ]*):\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[\d:]+<([\d:?]+)")


@dataclass(frozen=True)
class Progress:
    """How far a stage is; `left` is what tqdm expects, as "00:12", or "?"."""

    stage: str
    done: int
    total: int
    left: str


def read(logs: str) -> Progress | None:
    """The last progress bar in a prediction's logs."""
    found = BAR.findall(logs)
    if not found:
        return None
    stage, done, total, left = found[-1]
    return Progress(stage, int(done), int(total), left)


class Webhooks:
    """Listens where the server at `url` can reach this machine; remembers each prediction's logs.

    The address has a secret in it: whoever else reaches the port is told 404.
    """

    def __init__(self, url: str) -> None:
        self.logs: dict[str, str] = {}
        secret = secrets.token_urlsafe()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                known = self.path == f"/{secret}"
                if known:
                    listener.receive(json.loads(raw))
                self.send_response(200 if known else 404)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer((own_address(url), 0), Handler)
        host, port = server.server_address[:2]
        self.address = f"http://{host!s}:{port}/{secret}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def receive(self, event: dict[str, Any]) -> None:
        """Keep the logs of a prediction that somebody here waits for."""
        if event["id"] in self.logs:
            self.logs[event["id"]] = event.get("logs") or ""


def own_address(url: str) -> str:
    """The address of this machine on the way to `url`. Nothing is sent."""
    target = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target.hostname, target.port or 80))
        address: str = probe.getsockname()[0]
        return address
