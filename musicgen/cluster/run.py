"""Starts Ray or connects to it, and serves until a signal."""

import os
import signal
import threading

import ray
from ray import serve

from musicgen.cluster.application import application
from musicgen.cluster.options import Options
from musicgen.errors import MusicGenError

NAME = "musicgen"
NOT_YET = "does not serve musicgen yet: start it without --update"
ALREADY = "serves musicgen already: replace that with --update"
STORE = 200_000_000  # bytes of Ray's shared memory, which holds little more than addresses


def run(
    options: Options, key: str | None, address: str | None, update: bool, host: str, port: int
) -> None:
    """Serve until SIGINT or SIGTERM. With `update`, replace the running application and return.

    `key` is the upload key for the servers. Raises ConnectionError if no cluster is at `address`.
    """
    try:
        if address or update:
            ray.init(address or "auto", namespace=NAME)
        else:
            start(options)
        if update != (NAME in serve.status().applications):
            raise MusicGenError(f"This cluster {NOT_YET if update else ALREADY}.")
        if not update:
            where = "EveryNode" if address else "HeadOnly"
            serve.start(where, http_options={"host": host, "port": port})
        try:
            serve.run(application(options, key), name=NAME)
            if update:
                print("The cluster serves the new options.")
                return
            print(f"Serving on http://{host}:{port} (ctrl-C stops it)", flush=True)
            wait_for_signal()
        finally:
            if address and not update:  # ray.shutdown ends a cluster that this process started
                serve.shutdown()
    finally:
        ray.shutdown()


def start(options: Options) -> None:
    """Start a Ray cluster on this machine."""
    ray.init(
        "local",
        namespace=NAME,
        # Only for Ray's accounting: all replicas together may have more threads than cores.
        num_cpus=max(os.cpu_count() or 1, options.maximum * options.cpus),
        object_store_memory=STORE,
        include_dashboard=False,
        _metrics_export_port=options.metrics,
    )


def wait_for_signal() -> None:
    """Return at SIGTERM. Raises KeyboardInterrupt at SIGINT."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # instead of Ray's
    ended.wait()
