"""Measures a decode step on a busy CPU: the sum of the shortest times of its operations.

On a machine with other work no whole step runs undisturbed, but each of its operations does at
some time.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu_plan.launches import PREFIX
from benchmarks.work import Work, random_state_dict
from musicgen.decoder import kernels
from musicgen.decoder.decode_steps import slot_columns
from musicgen.decoder.lm import LM
from musicgen.decoder.state import State, decode_step


def fastest_step(work: Work, steps: int = 40) -> float:
    """Returns seconds of a step at the clip's mean context, each operation at its fastest."""
    lm = LM.from_audiocraft(
        work.config,
        random_state_dict(work.config),
        device="cpu",
        dtype=work.half,
        threads=torch.get_num_threads(),
    )
    state = _filled_state(lm, work)
    fastest: list[float] = []
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
            fastest = [min(pair) for pair in zip(fastest, times, strict=True)] if fastest else times
    return sum(fastest)


def _filled_state(lm: LM, work: Work) -> State:
    """Returns the state in the middle of the clips, with all of its memory in use."""
    columns, melodies = slot_columns(lm, work.frames), bool(work.melody_length)
    state = State.empty(lm, work.batch, columns, PREFIX, shared=melodies)
    if state.cache.shared_lengths is not None:
        state.cache.shared_lengths.copy_(torch.tensor(work.shared_prefix).repeat(work.batch))
    for tensor in (state.cache.keys, state.cache.values):
        tensor.fill_(0.1)  # the system assigns memory at the first write
    state.cache.cross_lengths.fill_(max(1, work.cross_length))
    state.prefix.fill_(work.prefix_length)
    return state
