"""Times a system: runs its own public decode loop and reads the clock between some steps."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

import torch

from benchmarks import machine
from benchmarks.systems import System
from benchmarks.work import Work

POINTS = 3  # contexts in the clip at which steps are timed
SHORT_CALL = 8  # steps of each call that measures warm-up and the first code
SHORT_CALLS = 3
# Device -> (steps per repeat, untimed steps before them). On CUDA, the steps cover whole blocks of
# noise, and the untimed steps give a baseline time to capture its graphs.
TIMED_STEPS = {"cpu": (8, 2), "cuda": (64, 32)}


@dataclass(frozen=True)
class TimedCall:
    """A decode call that continues `prompt` frames, timed after each step in `marks`."""

    prompt: int
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """The calls that are timed, the same for every system.

    Either whole clips, `repeats` times; or samples: `POINTS` calls, centred in equal parts of the
    clip, each starting after a prefilled prompt and timed for `repeats` times `chunk` steps. If a
    step's time grows linearly with its context, the mean of the samples is the mean of the clip.
    """

    full: bool
    calls: tuple[TimedCall, ...]
    chunk: int
    repeats: int
    discarded: int

    @property
    def summary(self) -> str:
        """Returns a sentence that describes the method."""
        if self.full:
            return f"all steps of the clip, {self.repeats} times"
        starts = ", ".join(str(call.prompt) for call in self.calls)
        return (
            f"{self.repeats} x {self.chunk} steps after {self.discarded} untimed ones, at each of "
            f"the contexts {starts}; their mean stands for the whole clip"
        )


def choose_method(
    work: Work, *, repeats: int, chunk: int | None = None, full: bool = False
) -> Method:
    """Returns what to time for this work; a clip too short for samples is timed whole."""
    usual, discarded = TIMED_STEPS[work.device.type]
    # Clips start one after another, so the first steps have fewer clips.
    discarded = max(discarded, work.batch)
    chunk = chunk or usual
    span = discarded + chunk * repeats
    if full or POINTS * span > work.frames:
        whole = TimedCall(0, (1, work.steps))
        return Method(True, (whole,) * repeats, work.steps - 1, repeats, 1)
    marks = tuple(discarded + chunk * i for i in range(repeats + 1))
    middles = [work.steps * (2 * i + 1) / (2 * POINTS) for i in range(POINTS)]
    starts = [round(middle - discarded - chunk * repeats / 2) for middle in middles]
    calls = tuple(TimedCall(start, marks) for start in starts)
    return Method(False, calls, chunk, repeats, discarded)


@dataclass(frozen=True)
class Timing:
    """Times in seconds. `steps` has the mean time of a step for each repeat."""

    steps: tuple[float, ...]
    first_code: float  # from the call to the first decoded step, without an audio prompt
    warm_up: float  # one-time costs: compilation, capture, a slow first call
    measured_steps: int
    measured: float  # sum over all timed steps


def measure(system: System, work: Work, method: Method) -> Timing:
    """Warm up the system, then time the method's calls."""
    warm_up = -time.perf_counter()
    system.warm_up()
    warm_up += time.perf_counter()
    short = TimedCall(0, tuple(sorted({1, min(SHORT_CALL, work.steps)})))
    first, *later = [_clock(system, work, short) for _ in range(1 + SHORT_CALLS)]
    warm_up += max(0.0, first[-1] - median(times[-1] for times in later))

    clocks = [_clock(system, work, call) for call in method.calls]
    gaps = [[after - before for before, after in pairwise(times)] for times in clocks]
    # Samples: a repeat is one chunk of every call. Whole clips: every call is a repeat.
    repeats = (
        [sum(gap) for gap in gaps]
        if method.full
        else [fmean(row) for row in zip(*gaps, strict=True)]
    )
    return Timing(
        steps=tuple(seconds / method.chunk for seconds in repeats),
        first_code=median(times[0] for times in later),
        warm_up=warm_up,
        measured_steps=method.chunk * sum(len(gap) for gap in gaps),
        measured=sum(map(sum, gaps)),
    )


def _clock(system: System, work: Work, call: TimedCall) -> list[float]:
    """Returns seconds from the start of the call to each mark."""
    stopwatch = Stopwatch(call.marks, work.device)
    prompt = work.prompt(call.prompt).to(work.device) if call.prompt else None
    stopwatch.start()
    try:
        system.decode(prompt, stopwatch.tick)
    except Done:
        return stopwatch.times
    raise RuntimeError(f"decoded {stopwatch.step} steps instead of {call.marks[-1]}")


class Done(Exception):  # noqa: N818 - control flow, not an error
    """Raised at the last mark, to leave the system's decode loop."""


class Stopwatch:
    """Counts steps; after each step in `marks` waits for the device and reads the clock."""

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
        """Count a step that was queued on the device. Raises Done at the last mark."""
        self.step += 1
        if self.step != self._next:
            return
        machine.synchronize(self.device)
        self.times.append(time.perf_counter() - self._start)
        self._next = next(self._marks, None)
        if self._next is None:
            raise Done
