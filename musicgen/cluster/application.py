"""The Ray Serve application: one gate and its replicas."""

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from musicgen.cluster.gate import Gate
from musicgen.cluster.options import Options
from musicgen.cluster.replica import Replica
from musicgen.commands import schema, server
from musicgen.commands.inputs import read_fields

QUIET = LoggingConfig(enable_access_log=False)  # without leases and announcements


def application(options: Options, key: str | None = None) -> serve.Application:
    """The application for `serve.run`. `key` is the upload key; by default that of each node."""
    environment = {"MUSICGEN_WEIGHTS": options.weights} if options.weights else {}
    at_once = int(server.prepare(options.predictor, "", 0)[1]["COG_MAX_CONCURRENCY"])
    environment["COG_MAX_CONCURRENCY"] = str(at_once)
    replicas = serve.deployment(Replica).options(
        name="replica",
        logging_config=QUIET,
        max_ongoing_requests=at_once,
        max_queued_requests=options.queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.minimum,
            max_replicas=options.maximum,
            initial_replicas=max(1, options.minimum),
            # With a quarter of its slots in use, a server is near its maximal throughput.
            target_ongoing_requests=max(1, at_once // 4),
            upscale_delay_s=10,
            downscale_delay_s=options.idle,
        ),
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        # Rare enough to be cheap, frequent enough to find a free slot soon.
        request_router_config=RequestRouterConfig(max_backoff_s=0.1),
        health_check_period_s=1,
        graceful_shutdown_timeout_s=options.drain,
        graceful_shutdown_wait_loop_s=0.5,
    )
    gate = serve.deployment(Gate).options(
        name="gate",
        logging_config=QUIET,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=1,
        graceful_shutdown_timeout_s=options.drain,
    )
    document = schema.openapi(server.source(options.predictor).read_text())
    inputs = list(read_fields(document))
    return gate.bind(replicas.bind(options.predictor, environment, key), inputs)


def from_arguments(arguments: dict[str, Any]) -> serve.Application:
    """The application for a configuration file of Ray Serve. Unknown arguments raise TypeError."""
    return application(Options(**arguments))
