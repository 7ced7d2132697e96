"""How a system is timed: its own public loop, with a clock that is read between some steps."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

import torch

from benchmarks import machine
from benchmarks.systems import System
from benchmarks.work import Work

POINTS = 3  # places in the clip where steps are timed
SHORT_CALL = 8  # steps of the calls that measure warm-up and the first code
SHORT_CALLS = 3
# device -> (steps to a repeat, steps before the clock starts). On CUDA whole blocks of noise, and
# long enough for a peer to record its graphs.
WINDOW_STEPS = {"cpu": (8, 2), "cuda": (64, 32)}


@dataclass(frozen=True)
class Window:
    """A call that goes on from `prompt` frames; the clock is read after each step in `marks`."""

    prompt: int
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The windows that are timed, the same for every system.

    Whole clips, `repeats` times; or sampled: `POINTS` windows, centred in equal parts of the clip,
    each reached by prefilling a prompt, timed for `repeats` times `chunk` steps. The mean of the
    windows is the mean over the clip as far as a step's time grows linearly with its context.
    """

    full: bool
    windows: tuple[Window, ...]
    chunk: int
    repeats: int
    discarded: int

    @property
    def summary(self) -> str:
        """What was measured, in a sentence."""
        if self.full:
            return f"all steps of the clip, {self.repeats} times"
        starts = ", ".join(str(window.prompt) for window in self.windows)
        return (
            f"{self.repeats} x {self.chunk} steps after {self.discarded} untimed ones, from each "
            f"of the contexts {starts}, the mean of which stands for the clip"
        )


def make_plan(work: Work, *, repeats: int, chunk: int | None = None, full: bool = False) -> Plan:
    """What to time for this work; a clip too short to be sampled is timed whole."""
    usual, discarded = WINDOW_STEPS[work.device.type]
    chunk = chunk or usual
    span = discarded + chunk * repeats
    if full or POINTS * span > work.frames:
        whole = Window(0, (1, work.steps))
        return Plan(True, (whole,) * repeats, work.steps - 1, repeats, 1)
    marks = tuple(discarded + chunk * i for i in range(repeats + 1))
    middles = [work.steps * (2 * i + 1) / (2 * POINTS) for i in range(POINTS)]
    starts = [round(middle - discarded - chunk * repeats / 2) for middle in middles]
    windows = tuple(Window(start, marks) for start in starts)
    return Plan(False, windows, chunk, repeats, discarded)


@dataclass(frozen=True)
class Timing:
    """Seconds; `steps` has one value a repeat, its mean time of a step."""

    steps: tuple[float, ...]
    first_code: float  # from the call to the first decoded step, conditions given, no prompt
    warm_up: float  # what comes once: compilation, capture, a slow first call
    measured_steps: int
    measured: float  # of all timed steps together


def measure(system: System, work: Work, plan: Plan) -> Timing:
    """Warm up, then time what the plan says."""
    warm_up = -time.perf_counter()
    system.warm_up()
    warm_up += time.perf_counter()
    short = Window(0, tuple(sorted({1, min(SHORT_CALL, work.steps)})))
    first, *later = [_clock(system, work, short) for _ in range(1 + SHORT_CALLS)]
    warm_up += max(0.0, first[-1] - median(times[-1] for times in later))

    clocks = [_clock(system, work, window) for window in plan.windows]
    gaps = [[after - before for before, after in pairwise(times)] for times in clocks]
    # Sampled: a repeat is one chunk in every window. Whole: every window is a repeat.
    repeats = (
        [sum(gap) for gap in gaps] if plan.full else [fmean(row) for row in zip(*gaps, strict=True)]
    )
    return Timing(
        steps=tuple(seconds / plan.chunk for seconds in repeats),
        first_code=median(times[0] for times in later),
        warm_up=warm_up,
        measured_steps=plan.chunk * sum(len(gap) for gap in gaps),
        measured=sum(map(sum, gaps)),
    )


def _clock(system: System, work: Work, window: Window) -> list[float]:
    """Seconds from the call to each mark."""
    stopwatch = Stopwatch(window.marks, work.device)
    prompt = work.prompt(window.prompt).to(work.device) if window.prompt else None
    stopwatch.start()
    try:
        system.decode(prompt, stopwatch.tick)
    except Done:
        return stopwatch.times
    raise RuntimeError(f"decoded {stopwatch.step} steps instead of {window.marks[-1]}")


class Done(Exception):  # noqa: N818 - not an error
    """The last mark was reached; leaves the system's loop."""


class Stopwatch:
    """Ticked at every step: waits for the device and reads the clock after those in `marks`."""

    def __init__(self, marks: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.step = 0
        self.times: list[float] = []
        self._marks: Iterator[int] = iter(marks)
        self._next: int | None = next(self._marks)

    def start(self) -> None:
        machine.synchronize(self.device)
        self._start = time.perf_counter()

    def tick(self) -> None:
        """One more step was given to the device. Raises Done at the last mark."""
        self.step += 1
        if self.step != self._next:
            return
        machine.synchronize(self.device)
        self.times.append(time.perf_counter() - self._start)
        self._next = next(self._marks, None)
        if self._next is None:
            raise Done
