"""The CPU's attention, compiled by numba: torch's forms read the cache at half of its speed.

Every head of every row is one task, computed by one thread in one order: its result depends
neither on the other rows nor on how many threads there are.
"""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import threading
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

# Multiplications that are worth a thread: fewer are done before another one has woken up.
WORTH_A_THREAD = 1_000_000
# numba's pool is one for the process, and not all of its kinds may be entered twice at once.
_pool = threading.Lock()


def attention_numba(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    lengths: Tensor,
    shared: Tensor | None = None,
) -> Tensor:
    """`attention.attention` that reads only what is filled; all in float32, on the CPU.

    What is `shared` is read in each row: here it would be no faster in one place.
    """
    _, heads, _, head_dim = keys.shape
    y = torch.empty(len(q), heads, head_dim)
    work = 2 * heads * head_dim * int(lengths.numpy().sum())
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    with _pool:
        if PARALLEL:
            numba.set_num_threads(max(1, min(threads, work // WORTH_A_THREAD)))
        _attend(
            q.view(len(q), heads, head_dim).numpy(),
            keys.numpy(),
            values.numpy(),
            rows.numpy(),
            lengths.numpy(),
            y.numpy(),
        )
    return y.view(len(q), heads * head_dim)


def attend(q, keys, values, rows, lengths, y):
    """A softmax over the filled positions of each head, and the values weighted by it."""
    heads, head_dim = q.shape[1:]
    for task in numba.prange(len(q) * heads):
        row, head = task // heads, task % heads
        cache_row, length = rows[row], lengths[row]
        query = q[row, head] / np.float32(np.sqrt(head_dim))
        weights = np.empty(length, np.float32)
        top = np.float32(-np.inf)
        for position in range(length):
            score = np.float32(0.0)
            for i in range(head_dim):
                score += query[i] * keys[cache_row, head, position, i]
            weights[position] = score
            top = max(top, score)
        total = np.float32(0.0)
        for position in range(length):
            weights[position] = np.exp(weights[position] - top)
            total += weights[position]
        value = np.zeros(head_dim, np.float32)
        for position in range(length):
            for i in range(head_dim):
                value[i] += weights[position] * values[cache_row, head, position, i]
        for i in range(head_dim):
            y[row, head, i] = value[i] / total


def compiled(function: Callable[..., None], parallel: bool) -> Callable[..., None]:
    """The function as machine code, from a file of an earlier start if there is one."""
    # A sum may be taken in parts, side by side; NaN and infinity stay what they are.
    options = {"parallel": parallel, "nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}
    try:
        made: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compiled again at each start
        made = numba.njit(**options)(function)
    return made


# Where one thread does all, there must be no pool: its idle threads would spin in the way of it.
PARALLEL = torch.get_num_threads() > 1
_attend = compiled(attend, PARALLEL)
