"""The command scripts/cluster."""

import argparse
import os

from musicgen.cluster.options import Options
from musicgen.commands.options import (
    add_address_options,
    add_model_options,
    check_port,
    choose_weights,
    exit_codes,
    make_parser,
)
from musicgen.serving import upload_key

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # several servers log equal lines, and all are needed
    "RAY_COLOR_PREFIX": "0",
    # Otherwise a replica with --gpus 0 still sees all GPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
# A cluster of one machine listens on loopback only.
ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def main() -> None:
    """Serve several Cog servers behind one address until ctrl-C."""
    arguments = parse()
    os.environ |= SETTINGS if arguments.address else SETTINGS | ONE_MACHINE
    with exit_codes():
        if not arguments.update:
            check_port(arguments.host, arguments.port)
            if not arguments.address:
                check_port("0.0.0.0", arguments.metrics, "--metrics")
        options = Options(
            predictor=arguments.predictor,
            weights=choose_weights(arguments.weights),
            minimum=arguments.min,
            maximum=arguments.max,
            gpus=arguments.gpus,
            cpus=arguments.cpus,
            queue=arguments.queue,
            idle=arguments.idle,
            metrics=arguments.metrics,
        )
        key = upload_key.take()  # before Ray's processes inherit it
        from musicgen.cluster import run  # Ray reads the environment when it is imported

        run.run(options, key, arguments.address, arguments.update, arguments.host, arguments.port)


def parse() -> argparse.Namespace:
    """The command line options."""
    parser = make_parser("cluster", main.__doc__)
    add_model_options(parser)
    default = Options()
    for name, kind, value, text in (
        ("--replicas", int, None, "number of servers: the same as --min N --max N"),
        ("--min", int, default.minimum, "servers at least; with 0, the last one stops when idle"),
        ("--max", int, default.maximum, "servers at most, started under load"),
        ("--gpus", float, default.gpus, "GPUs for each server"),
        ("--cpus", int, default.cpus, "threads for each server"),
        ("--queue", int, default.queue, "requests that may wait; more are answered with 503"),
        ("--idle", float, default.idle, "seconds of low load after which a server stops"),
        ("--metrics", int, default.metrics, "port of /metrics, for Prometheus"),
    ):
        text += "" if value is None else f" (default: {value:g})"
        parser.add_argument(name, type=kind, default=value, metavar="N", help=text)
    add_address_options(parser, 8000)
    parser.add_argument(
        "--address", help="use this Ray cluster instead of starting one: auto, or HOST:PORT"
    )
    parser.add_argument(
        "--update", action="store_true", help="replace what the cluster serves, and return"
    )
    arguments = parser.parse_args()
    if arguments.replicas is not None:
        arguments.min = arguments.max = arguments.replicas
    if not 0 <= arguments.min <= arguments.max or arguments.max < 1:
        parser.error("--min must be 0 or more; --max must be 1 or more, and not below --min")
    return arguments


if __name__ == "__main__":
    main()
