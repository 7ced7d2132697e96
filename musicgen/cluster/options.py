"""What an operator decides. Imports nothing of Ray, which reads its environment when imported."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What is served. `gpus` and `cpus` are those of one replica."""

    predictor: str = "predict"
    weights: str = ""  # folder; the demo without one
    minimum: int = 1  # replicas; 0 lets an idle one end
    maximum: int = 1
    gpus: float = 0
    cpus: int = 1
    queue: int = 200  # requests that may wait for a place
    idle: float = 120  # seconds with too little to do after which a replica above `minimum` ends
    metrics: int = 8080  # port of /metrics where Ray is started for this
    drain: float = 600  # seconds that a replica has to finish what it runs when it is replaced
