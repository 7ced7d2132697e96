"""The operator's options. Does not import Ray, which reads its environment when imported."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Options of a cluster. `gpus` and `cpus` are per replica."""

    predictor: str = "predict"
    weights: str = ""  # checkpoint folder; the demo model if empty
    minimum: int = 1  # replicas; with 0, the last one stops when it is idle
    maximum: int = 1
    gpus: float = 0
    cpus: int = 1
    queue: int = 200  # requests that may wait for a slot
    idle: float = 120  # seconds of low load after which a replica above `minimum` stops
    metrics: int = 8080  # port of /metrics, if this command starts Ray
    drain: float = 600  # seconds for a replaced replica to finish its running predictions
