"""Starts Ray, or joins it, and serves until a signal comes."""

import os
import signal
import socket
import threading

import ray
from ray import serve

from musicgen.cluster.application import application
from musicgen.cluster.options import Options
from musicgen.errors import MusicGenError

NAME = "musicgen"
STORE = 200_000_000  # bytes of Ray's shared memory: little more than addresses goes through it


def run(options: Options, address: str | None, update: bool, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; an update of what is served already returns when it is done.

    Raises MusicGenError if the port is taken, ConnectionError if no cluster is at `address`.
    """
    if not update:
        check_free(host, port)
    try:
        if address or update:
            ray.init(address or "auto", namespace=NAME)
        else:
            start(options)
        if update != (NAME in serve.status().applications):
            raise MusicGenError(f"This cluster serves {'nothing yet' if update else 'already'}.")
        if not update:
            where = "EveryNode" if address else "HeadOnly"
            serve.start(where, http_options={"host": host, "port": port})
        try:
            serve.run(application(options), name=NAME)
            if update:
                print("Replaced what the cluster serves.")
                return
            print(f"Serving on http://{host}:{port}, ctrl-C ends it.", flush=True)
            wait_for_signal()
        finally:
            if address and not update:  # a cluster of our own ends as a whole
                serve.shutdown()
    finally:
        ray.shutdown()


def start(options: Options) -> None:
    """Start a cluster of this machine alone."""
    ray.init(
        "local",
        namespace=NAME,
        # For Ray's sums alone: replicas may have more threads together than there are cores.
        num_cpus=max(os.cpu_count() or 1, options.maximum * options.cpus),
        object_store_memory=STORE,
        include_dashboard=False,
        _metrics_export_port=options.metrics,
    )


def check_free(host: str, port: int) -> None:
    """Raises MusicGenError if something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise MusicGenError(f"port {port} of {host}: {exc.strerror}") from exc


def wait_for_signal() -> None:
    """Return at ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
