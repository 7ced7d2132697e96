"""Progress of predictions, read from the logs that a Cog server posts to a webhook of this process.

Cog reports progress in no other way if its predictor does not stream: GET of a prediction does not
exist. If the server cannot reach this process, only the progress bar is missing: the result arrives
in the request's response.
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
MAX_BODY = 1 << 20  # bytes of a webhook's body: more than the log of any prediction
READ_TIMEOUT = 30  # seconds to wait for the sender's next byte


@dataclass(frozen=True)
class Progress:
    """The progress of a stage. `left` is the remaining time by tqdm's estimate: "00:12", or "?"."""

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
    """An HTTP server, reachable for the Cog server at `url`, that keeps the logs of predictions.

    It keeps those of the ids in `logs`. Its address contains a secret. A request to any other path
    gets a 404, and its body is not read.
    """

    def __init__(self, url: str, logs: dict[str, str]) -> None:
        self.logs = logs
        webhooks, path = self, f"/{secrets.token_urlsafe()}"

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT

            def do_POST(self) -> None:
                self.send_response(self.receive() if self.path == path else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def receive(self) -> int:
                """Read the event; the HTTP status."""
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal():
                    return 411
                if int(length) > MAX_BODY:
                    return 413
                try:
                    webhooks.receive(json.loads(self.rfile.read(int(length))))
                except (ValueError, KeyError, TypeError):  # not an event of Cog's
                    return 400
                return 200

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.handler = Handler
        server = ThreadingHTTPServer((own_address(url), 0), Handler)
        host, port = server.server_address[:2]
        self.address = f"http://{host!s}:{port}{path}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def receive(self, event: dict[str, Any]) -> None:
        """Keep the logs of a prediction, if this page has asked for it."""
        if event["id"] in self.logs:
            self.logs[event["id"]] = event.get("logs") or ""


def own_address(url: str) -> str:
    """The address of this machine on the route to `url`. Sends nothing."""
    target = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target.hostname, target.port or 80))
        address: str = probe.getsockname()[0]
        return address
