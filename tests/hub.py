"""A local imitation of the hub: the part of its HTTP API that the hub's client needs to download.

Repositories are folders. As on the real hub, large files have a sha256 and redirect to another
path, small ones have git's hash. `cuts` and `damaged` cause faults.
"""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlparse

import huggingface_hub.constants
from web import serving

from musicgen.checkpoints.demucs_file import open_demucs
from musicgen.checkpoints.tensors import write_tensors

DEMUCS_MODEL = "955717e8"
REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".bin", ".safetensors", ".th", ".model")


class Hub:
    """`repositories`: name -> (folder, licence of its card or None)."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.cuts = {}  # file name -> bytes until the connection breaks, for each request
        self.damaged = set()  # names of files that are sent with a changed byte
        self.requests = []  # (file name, first byte of the requested range)

    def listing(self, name):
        folder, licence = self.repositories[name]
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": REVISION,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": {"license": licence} if licence else {},
            "siblings": [self.entry(path, folder) for path in files],
        }

    def entry(self, path, folder):
        data = path.read_bytes()
        entry = {
            "rfilename": path.relative_to(folder).as_posix(),
            "size": len(data),
            "blobId": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest(),
        }
        if path.suffix in LARGE:
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]))
        if parts[0] == "cdn":
            return self.content("/".join(parts[1:3]), "/".join(parts[3:]))
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if name not in self.server.hub.repositories:
            return self.answer(404, b"{}")
        if file.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/cdn/{name}/{file}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.content(name, file)

    def api(self, name):
        hub = self.server.hub
        if name not in hub.repositories:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self.answer(200, json.dumps(hub.listing(name)).encode())

    def content(self, name, file):
        hub = self.server.hub
        data = bytearray((hub.repositories[name][0] / file).read_bytes())
        if file in hub.damaged:
            data[-1] ^= 1
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        hub.requests.append((file, first))
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        cut = hub.cuts[file].pop(0) if hub.cuts.get(file) else None
        return self.answer(206 if first else 200, bytes(data[first:]), headers, cut)

    def answer(self, status, body, headers=(), cut=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        """Log nothing."""


@contextmanager
def running(repositories):
    """Yields the hub while it serves at `hub.url`."""
    with serving(Handler) as server:
        server.hub = Hub(repositories)
        server.hub.url = server.url
        yield server.hub


def set_endpoint(monkeypatch, url):
    """Set HF_ENDPOINT in a process in which the client has already read it."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def write_demucs(folder, source):
    """A repository like adefossez/HTDemucs, with the model of a checkpoint's file."""
    demucs = open_demucs(source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htdemucs.yaml").write_text(f"models: ['{DEMUCS_MODEL}']\n")
    path = folder / f"{DEMUCS_MODEL}.safetensors"
    write_tensors(path, demucs.state, lambda _, tensor: tensor.dtype, demucs.metadata)
