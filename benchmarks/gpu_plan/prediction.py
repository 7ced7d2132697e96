"""scripts/bench --plan: predict the time of a decode step on a GPU that is not available.

A launch takes a constant start time, then the longest of four: its traffic from memory, the traffic
of the busiest processor, the latency-bound reads of one program, and its arithmetic. Nothing of
this is measured: each printed line begins with "predicted", and results keep predictions apart from
measurements.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_plan import cards
from benchmarks.gpu_plan.cards import Card
from benchmarks.gpu_plan.cost import Cost, launch_cost
from benchmarks.gpu_plan.launches import step_launches
from benchmarks.work import MAX_SECONDS, Storage, Work, step_bytes

HALF = Storage(2, 2)


def seconds(launch: Cost, card: Card) -> float:
    """Returns the time of a launch that runs alone on the card."""
    start = card.dependent_launch if launch.dependent else card.launch
    start += launch.waits * card.cache_latency
    if launch.memory and not launch.prefetches:
        start += card.memory_latency
    if not launch.programs:
        return start + max(launch.memory / card.reachable, launch.operations / card.arithmetic)
    resident = card.processors * min(
        card.shared_memory // (launch.shared_memory + 1024),
        card.threads // launch.threads,
        card.programs,
    )
    waves = [resident] * (launch.programs // resident) + [launch.programs % resident]
    return start + sum(_wave(launch, card, programs) for programs in waves if programs)


def _wave(launch: Cost, card: Card, programs: int) -> float:
    """Returns the time of programs that all run at once, spread evenly over the processors."""
    busiest = math.ceil(programs / card.processors)  # programs of one processor, at most
    read = launch.memory + launch.cached
    reading = max(
        programs * launch.memory / card.reachable,
        busiest * read / card.processor_bytes,
        read * card.memory_latency / launch.in_flight,
    )
    computing = busiest * launch.operations * card.processors / card.arithmetic
    return max(reading, computing) if card.overlaps else reading + computing


@dataclass(frozen=True)
class Part:
    """The launches of one kind in a step."""

    label: str
    launches: int
    programs: int
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """The predicted decode step of `work` on a card."""

    card: Card
    work: Work
    storage: Storage
    parts: Sequence[Part]

    @property
    def step(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def floor(self) -> float:
        """Returns the seconds of reading a step's bytes once at the card's bandwidth."""
        return step_bytes(self.work, self.storage) / self.card.bandwidth

    @property
    def real_time(self) -> float:
        """Returns seconds of audio, of all clips together, per second of decoding."""
        return self.work.batch * self.work.seconds / (self.work.steps * self.step)

    def record(self) -> dict[str, Any]:
        return {
            "predicted": True,
            "card": self.card.name,
            "model": self.work.model,
            "batch": self.work.batch,
            "melodies": self.work.melodies and self.work.melody_length > 0,
            "ms_per_step": 1e3 * self.step,
            "floor_ms": 1e3 * self.floor,
            "roofline_percent": 100 * self.floor / self.step,
            "real_time_factor": self.real_time,
            "launches": sum(part.launches for part in self.parts),
            "parts": [{**vars(part), "share": part.seconds / self.step} for part in self.parts],
        }


def predict(work: Work, card: Card, storage: Storage = HALF) -> Prediction:
    """Returns the predicted step from launches recorded for the card; longest parts first."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for launch in step_launches(work.config, work.batch, card.capability):
        cost = launch_cost(launch, work, storage.cache)
        found[cost.label].append((cost.programs, seconds(cost, card)))
    parts = [
        Part(label, len(all_), all_[0][0], sum(time for _, time in all_))
        for label, all_ in found.items()
    ]
    return Prediction(card, work, storage, sorted(parts, key=lambda part: -part.seconds))


def table(predictions: Iterable[Prediction]) -> str:
    """Returns text for a terminal; every line begins with "predicted"."""
    lines = []
    for one in predictions:
        work, record = one.work, one.record()
        lines += [
            f"predicted, {one.card.name}, {work.model}, {work.batch} clips: {1e3 * one.step:.2f} ms"
            f" per step, {one.real_time:.1f} x real time, {record['roofline_percent']:.0f}% of the"
            f" roofline ({1e3 * one.floor:.2f} ms), {record['launches']} launches",
            *(
                f"predicted  {1e3 * part.seconds:8.3f} ms {part.seconds / one.step:5.0%}"
                f"  {part.launches:4} x {part.programs or '?':>5} programs  {part.label}"
                for part in one.parts
            ),
            "predicted",
        ]
    return "\n".join([*lines, cards.SOURCES])


def predict_gpus(
    names: Sequence[str], model: str, batches: Sequence[int], melodies: bool = True
) -> list[Prediction]:
    """Returns the predicted step on each of these GPUs, with each number of clips."""
    device = torch.device("cuda")
    return [
        predict(Work(model, MAX_SECONDS, batch, device, melodies), cards.GPUS[name])
        for name in names
        for batch in batches
    ]


def compare_on_cpu(prediction: Prediction, measured: float) -> str:
    """Returns text that compares the prediction for this CPU with `measured` seconds per step."""
    card = prediction.card
    return (
        f"predicted for this CPU {1e3 * prediction.step:.1f} ms per step, fastest measured"
        f" {1e3 * measured:.1f} ms: {prediction.step / measured - 1:+.0%}"
        f" ({prediction.work.model}, {prediction.work.batch} clips)\n"
        f"predicted from measured parts: {card.bandwidth / 1e9:.1f} GB/s from memory,"
        f" {card.processors} x {card.processor_bytes / 1e9:.1f} GB/s of attention in cache,"
        f" {card.arithmetic / 1e9:.0f} GFLOP/s of matrix products in cache,"
        f" {1e6 * card.launch:.1f} us per operation"
    )
