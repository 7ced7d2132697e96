"""The stages of the report, the most wanted results first, baselines and risky ones last."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BASE_SECONDS = 540  # the sum of the limits of the stages before `baselines`, roughly


@dataclass(frozen=True)
class Stage:
    """A process of the report: `run` of `benchmarks.gpu_report.<module>`."""

    name: str
    module: str
    seconds: int  # limit, in a report of BASE_SECONDS
    question: str
    environment: Mapping[str, str] = field(default_factory=dict)
    least: int = 10  # seconds without which the stage is not started


DEPENDENT = {"MUSICGEN_DEPENDENT_LAUNCHES": "1"}

STAGES = (
    Stage("facts", "facts", 20, "GPU, driver, versions, compiler", least=5),
    Stage("kernels", "kernel_errors", 120, "difference of every kernel from PyTorch, compile time"),
    Stage("tests", "engine_tests", 90, "capture, and codes that do not depend on other clips"),
    Stage("speed", "speed", 100, "milliseconds per step beside the prediction"),
    Stage("profile", "step_profile", 40, "microseconds per kernel, and of the host, per step"),
    Stage("prefill", "prefill", 30, "prefill of new lengths, cuDNN attention on and off"),
    Stage("together", "together", 80, "decoding beside encoding, rendering and cancellation"),
    Stage("memory", "memory_limit", 30, "slots that fit, and a GPU that is nearly full"),
    Stage("dependent tests", "overlap_tests", 30, "overlapping launches: codes", DEPENDENT),
    Stage("dependent speed", "overlap_speed", 30, "overlapping launches: speed", DEPENDENT),
    Stage("baseline", "baseline", 60, "transformers, one clip of the small model"),
    Stage("sanitizer", "sanitizer", 120, "memory errors in one step of a tiny model", least=20),
    Stage("baselines", "baselines", 900, "all baselines, models and batches", least=60),
)
BY_NAME = {stage.name: stage for stage in STAGES}
