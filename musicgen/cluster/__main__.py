"""The command scripts/cluster."""

import argparse
import os
import sys
from pathlib import Path

from musicgen.checkpoints import folders
from musicgen.cluster.options import Options
from musicgen.commands import server
from musicgen.errors import MusicGenError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # lines of several servers are alike, and all are wanted
    "RAY_COLOR_PREFIX": "0",
}
# A cluster of one machine listens to that machine alone.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def main() -> None:
    """Serve until ctrl-C."""
    arguments = parsed()
    os.environ |= SETTINGS if arguments.address else SETTINGS | ALONE
    from musicgen.cluster import run  # Ray reads the environment when it is imported

    try:
        run.run(
            Options(
                predictor=arguments.predictor,
                weights=str(folders.resolve(arguments.weights).resolve()),
                minimum=arguments.min,
                maximum=arguments.max,
                gpus=arguments.gpus,
                cpus=arguments.cpus,
                queue=arguments.queue,
                idle=arguments.idle,
                metrics=arguments.metrics,
            ),
            arguments.address,
            arguments.update,
            arguments.host,
            arguments.port,
        )
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")
    except KeyboardInterrupt:  # while it starts
        sys.exit(130)


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=main.__doc__)
    parser.add_argument("--predictor", choices=server.PREDICTORS, default=Options.predictor)
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--replicas", type=int, metavar="N", help="the same as --min N --max N")
    parser.add_argument("--min", type=int, default=Options.minimum, help="0 lets an idle one end")
    parser.add_argument("--max", type=int, default=Options.maximum)
    parser.add_argument("--gpus", type=float, default=Options.gpus, help="of one replica")
    parser.add_argument("--cpus", type=int, default=Options.cpus, help="threads of one replica")
    parser.add_argument("--queue", type=int, default=Options.queue, help="requests that may wait")
    parser.add_argument("--idle", type=float, default=Options.idle, help="seconds until one ends")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics", type=int, default=Options.metrics, help="port of /metrics")
    parser.add_argument("--address", help="a cluster of Ray: auto, or HOST:PORT of its head")
    parser.add_argument(
        "--update", action="store_true", help="replace what the cluster serves already, and return"
    )
    arguments = parser.parse_args()
    if arguments.replicas is not None:
        arguments.min = arguments.max = arguments.replicas
    if not 0 <= arguments.min <= arguments.max or arguments.max < 1:
        parser.error("--min is 0 or more; --max is 1 or more, and not below --min")
    return arguments


if __name__ == "__main__":
    main()
