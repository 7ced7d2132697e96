"""Serves one prediction without a network. checkpoints/test_offline.py runs it as a process.

Arguments: the checkpoint folder, a file for the server's log.
"""

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from musicgen.commands import server
from musicgen.commands.client import Client
from musicgen.commands.server import ROOT

SET_FLAGS, UP_AND_RUNNING = 0x8914, 0x1 | 0x40
ELSEWHERE = ("192.0.2.1", 443)  # an address reserved for documentation


def raise_loopback():
    """Turn on the loopback interface, which is off in a new network namespace."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", UP_AND_RUNNING)
        fcntl.ioctl(any_socket, SET_FLAGS, request)


def has_route():
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(ELSEWHERE) not in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def main():
    checkpoint, log = sys.argv[1:]
    if "IN_NAMESPACE" in os.environ:
        raise_loopback()
        assert not has_route()
    environment = {
        "COG_WEIGHTS": checkpoint,
        "MUSICGEN_WEIGHTS": "/nowhere",  # COG_WEIGHTS takes precedence
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        # Refuses and lists connections to other machines, where namespaces are not available.
        "PYTHONPATH": str(Path(__file__).parent / "guard"),
    }
    inputs = {"prompt": "a song", "duration": 1, "output_format": "wav", "seed": 1}
    port = server.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [ROOT / "scripts" / "serve", "--port", str(port)]
    with Path(log).open("w") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=stream, stderr=stream
        )
        try:
            server.wait_until_ready(url, process)
            prediction = Client(url).predict(inputs)
        finally:
            server.stop(process, url)
    [audio] = prediction.audio
    print(json.dumps({**prediction.facts, "audio": len(audio)}))


if __name__ == "__main__":
    main()
