"""scripts/bench --plan: what a decode step should take on a GPU that is not at hand.

Every launch of the step takes the longest of what its memory, its processors, its programs' own
reads and the arithmetic need, after a constant time to begin. Nothing of it is measured, so it is
printed and kept apart from what is, and each line says so.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_plan import cards
from benchmarks.gpu_plan.cards import Card
from benchmarks.gpu_plan.launches import step_launches
from benchmarks.gpu_plan.traffic import Traffic, traffic
from benchmarks.work import MAX_SECONDS, Storage, Work, step_bytes

HALF = Storage(2, 2)


def seconds(launch: Traffic, card: Card) -> float:
    """How long a launch takes, alone on the card."""
    begin = card.dependent_launch if launch.dependent else card.launch
    begin += launch.waits * card.cache_latency
    if launch.memory and not launch.fetches:
        begin += card.memory_latency
    if not launch.programs:
        return begin + max(launch.memory / card.reachable, launch.operations / card.arithmetic)
    places = card.processors * min(
        card.shared_memory // (launch.shared + 1024), card.threads // launch.threads, card.programs
    )
    waves = [places] * (launch.programs // places) + [launch.programs % places]
    return begin + sum(_wave(launch, card, programs) for programs in waves if programs)


def _wave(launch: Traffic, card: Card, programs: int) -> float:
    """Programs that all run at once, as evenly spread as they can be."""
    of_one = math.ceil(programs / card.processors)  # on the processor that has most
    read = launch.memory + launch.cached
    reading = max(
        programs * launch.memory / card.reachable,
        of_one * read / card.processor_bytes,
        read * card.memory_latency / launch.flight,
    )
    computing = of_one * launch.operations * card.processors / card.arithmetic
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
    """A step of `work` on a card."""

    card: Card
    work: Work
    storage: Storage
    parts: Sequence[Part]

    @property
    def step(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def floor(self) -> float:
        """Seconds in which the card's bandwidth moves what a step must read."""
        return step_bytes(self.work, self.storage) / self.card.bandwidth

    @property
    def real_time(self) -> float:
        """Seconds of audio, of all clips, per second."""
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
    """What the launches of a step, recorded as if on that card, should take; longest first."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for launch in step_launches(work.config, work.batch, card.capability):
        moved = traffic(launch, work, storage.cache)
        found[moved.label].append((moved.programs, seconds(moved, card)))
    parts = [
        Part(label, len(all_), all_[0][0], sum(time for _, time in all_))
        for label, all_ in found.items()
    ]
    return Prediction(card, work, storage, sorted(parts, key=lambda part: -part.seconds))


def table(predictions: Iterable[Prediction]) -> str:
    """For a terminal; every line says what it is."""
    lines = []
    for one in predictions:
        work, record = one.work, one.record()
        lines += [
            f"predicted, {one.card.name}, {work.model}, {work.batch} clips: {1e3 * one.step:.2f} ms"
            f" a step, {one.real_time:.1f} x real time, {record['roofline_percent']:.0f}% of the"
            f" roofline ({1e3 * one.floor:.2f} ms), {record['launches']} launches",
            *(
                f"predicted  {1e3 * part.seconds:8.3f} ms {part.seconds / one.step:5.0%}"
                f"  {part.launches:4} x {part.programs or '?':>5} programs  {part.label}"
                for part in one.parts
            ),
            "predicted",
        ]
    return "\n".join([*lines, cards.SOURCES])


def of_gpus(
    names: Sequence[str], model: str, batches: Sequence[int], melodies: bool = True
) -> list[Prediction]:
    """A step of so many clips, on each of these GPUs."""
    device = torch.device("cuda")
    return [
        predict(Work(model, MAX_SECONDS, batch, device, melodies), cards.GPUS[name])
        for name in names
        for batch in batches
    ]


def beside(prediction: Prediction, measured: float) -> str:
    """What the model is worth where its prediction can be measured, in seconds a step."""
    card = prediction.card
    return (
        f"predicted for this CPU {1e3 * prediction.step:.1f} ms a step, measured"
        f" {1e3 * measured:.1f} ms at least: {prediction.step / measured - 1:+.0%}"
        f" ({prediction.work.model}, {prediction.work.batch} clips)\n"
        f"predicted from what it does in pieces: {card.bandwidth / 1e9:.1f} GB/s from memory,"
        f" {card.processors} x {card.processor_bytes / 1e9:.1f} GB/s of attention in a cache,"
        f" {card.arithmetic / 1e9:.0f} GFLOP/s of products in a cache,"
        f" {1e6 * card.launch:.1f} us an operation"
    )
