"""The reverse proxy of deploy/, run for real in front of a server."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from certificates import write_certificate
from gate import until

from musicgen.commands.server import ROOT, free_port

CONFIG = ROOT / "deploy" / "haproxy.cfg"
TOKEN = "9c1f0c0ffee5"
ORIGIN = "https://music.example.com"
INSTALLED = shutil.which("haproxy") or "/usr/sbin/haproxy"


def is_installed() -> bool:
    return Path(INSTALLED).exists()


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its address, its port, its log and its certificate."""

    url: str
    port: int
    log: Path
    certificate: Path

    def request(self, method, path, token=TOKEN, headers=None, **options):
        """One request, with the token unless it is None."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return httpx.request(
            method,
            self.url + path,
            headers=sent,
            verify=self.trust(),
            timeout=None,
            **options,
        )

    def predict(self, **inputs):
        return self.request("POST", "/predictions", json={"input": inputs})

    def trust(self):
        return ssl.create_default_context(cafile=str(self.certificate))


@contextmanager
def running(server_url: str, folder: Path) -> Iterator[Proxy]:
    """The proxy in front of the server at `server_url`."""
    port = free_port()
    certificate = write_certificate(folder / "certificates")
    environment = {
        "MUSICGEN_TOKEN": TOKEN,
        "MUSICGEN_ORIGIN": ORIGIN,
        "MUSICGEN_SERVER": server_url.removeprefix("http://"),
        "PROXY_PORT": str(port),
        "PROXY_CERTS": str(certificate.parent),
    }
    log = folder / "proxy.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [INSTALLED, "-db", "-f", str(CONFIG)], env=environment, stdout=stream, stderr=stream
        )
        try:
            until(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None, log.read_text()
            yield Proxy(f"https://localhost:{port}", port, log, certificate)
        finally:
            process.terminate()
            process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
