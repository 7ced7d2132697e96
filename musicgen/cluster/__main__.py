"""The command scripts/cluster."""

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import ray
from ray import serve

from musicgen.checkpoints import folders
from musicgen.cluster.application import Options, application
from musicgen.commands import server
from musicgen.errors import MusicGenError

NAME = "musicgen"
STORE = 200_000_000  # bytes of Ray's shared memory: little more than addresses goes through it
LOOPBACK = "127.0.0.1"


def main() -> None:
    """Serve until ctrl-C; or, in a cluster that serves already, replace what it serves."""
    arguments = parsed()
    try:
        join(arguments)
        update = NAME in serve.status().applications
        if not update:
            check_free(arguments.host, arguments.port)
            everywhere = "EveryNode" if arguments.address else "HeadOnly"
            serve.start(everywhere, {"host": arguments.host, "port": arguments.port})
        serve.run(application(chosen(arguments)), name=NAME)
        if update:
            return print("Replaced what the cluster serves.")
        print(f"Serving on http://{arguments.host}:{arguments.port}, ctrl-C ends it.", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
        if arguments.address:
            serve.shutdown()
    except (MusicGenError, ConnectionError) as exc:
        sys.exit(f"Error: {exc}")
    finally:
        ray.shutdown()


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=main.__doc__)
    parser.add_argument("--face", choices=server.FACES, default=Options.face)
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--replicas", type=int, metavar="N", help="the same as --min N --max N")
    parser.add_argument("--min", type=int, default=1, metavar="N", help="0 lets an idle one end")
    parser.add_argument("--max", type=int, default=1, metavar="N")
    parser.add_argument("--gpus", type=float, help="of one replica; 1 if there are any")
    parser.add_argument("--cpus", type=int, default=Options.cpus, help="threads of one replica")
    parser.add_argument("--queue", type=int, default=Options.queue, help="requests that may wait")
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="a cluster of Ray: auto, or HOST:PORT of its head")
    arguments = parser.parse_args()
    if arguments.replicas is not None:
        arguments.min = arguments.max = arguments.replicas
    if not 0 <= arguments.min <= arguments.max or arguments.max < 1:
        parser.error("0 <= --min <= --max and 1 <= --max, please")
    return arguments


def join(arguments: argparse.Namespace) -> None:
    """Connect to the cluster named, or start one on this machine that none can reach."""
    if arguments.address:
        ray.init(arguments.address, namespace=NAME)
        return
    ray.init(
        "local",
        namespace=NAME,
        # Of Ray's own sums: replicas may have more threads together than there are cores.
        num_cpus=max(os.cpu_count() or 1, arguments.max * arguments.cpus),
        object_store_memory=STORE,
        include_dashboard=False,
        _node_ip_address=LOOPBACK,
    )


def chosen(arguments: argparse.Namespace) -> Options:
    """The command line's options of the application."""
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    return Options(
        face=arguments.face,
        weights=str(folders.chosen(arguments.weights).resolve()),
        minimum=arguments.min,
        maximum=arguments.max,
        gpus=gpus if arguments.gpus is None else arguments.gpus,
        cpus=arguments.cpus,
        queue=arguments.queue,
    )


def check_free(host: str, port: int) -> None:
    """Raises MusicGenError if something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise MusicGenError(f"port {port} of {host}: {exc.strerror}") from exc


if __name__ == "__main__":
    main()
