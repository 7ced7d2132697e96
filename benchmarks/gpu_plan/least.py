"""The decode step of this CPU as nobody else's work disturbs it: the least time of each operation.

A whole step is never undisturbed on a busy machine; each of its operations is, now and then.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu_plan.launches import PREFIX
from benchmarks.work import Work, random_state
from musicgen.decoder import kernels
from musicgen.decoder.engine import slot_columns
from musicgen.decoder.lm import LM
from musicgen.decoder.state import State, decode_step


def least_step(work: Work, steps: int = 40) -> float:
    """Seconds of a step at the clip's mean context: the sum of its operations' least times."""
    lm = LM.from_audiocraft(
        work.config,
        random_state(work.config),
        device="cpu",
        dtype=work.half,
        threads=torch.get_num_threads(),
    )
    columns, melodies = slot_columns(lm, work.frames), bool(work.melody_length)
    state = State.empty(lm, work.batch, columns, PREFIX, shared=melodies)
    if state.cache.shared_lengths is not None:
        state.cache.shared_lengths.copy_(torch.tensor(work.shared).repeat(work.batch))
    for filled in (state.cache.keys, state.cache.values):
        filled.fill_(0.1)  # so that its memory is there
    state.cache.cross_lengths.fill_(max(1, work.cross_length))
    state.prefix.fill_(work.prefix_length)
    least: list[float] = []
    calls: list[float] = []

    def timed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = operation(*args, **kwargs)
            calls.append(time.perf_counter() - start)
            return result

        return call

    assert lm.team
    ops = kernels.cpu_ops(lm.team)
    # All layers run as one compiled call, so the operations are timed together.
    timed_ops = SimpleNamespace(replay=timed(ops.replay), sample=timed(ops.sample))
    slots = torch.arange(work.batch)
    with torch.no_grad():
        for _ in range(steps):
            state.column.fill_(work.steps // 2)
            calls.clear()
            start = time.perf_counter()
            decode_step(lm, timed_ops, state, slots)
            rest = time.perf_counter() - start - sum(calls)
            times = [*calls, rest]
            least = [min(pair) for pair in zip(least, times, strict=True)] if least else times
    return sum(least)
