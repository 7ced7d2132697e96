"""The attention of the CPU, compiled by numba: twice as fast as torch's.

Every head of every row is one task, computed by one thread in one order: its result depends
neither on the other rows nor on the number of threads.
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

# Multiplications per thread: fewer are done before another thread has woken up.
WORTH_A_THREAD = 1_000_000
# numba has one pool per process, and some kinds of it must not be entered by two threads at once.
_pool = threading.Lock()


def attention_numba(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    lengths: Tensor,
    shared: Tensor | None = None,
) -> Tensor:
    """`attention.attention` that reads filled positions only, in float32, on the CPU.

    `shared` positions are read in each row: reading them in one place is not faster here.
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
    """Write the values of each head, weighted by the softmax over its filled positions, to y."""
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
    """The function compiled by numba, loaded from numba's cache on later starts."""
    # Sums may be reordered; NaN and infinity keep their meaning.
    options = {"parallel": parallel, "nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}
    try:
        made: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no cache folder is writable: compile again at each start
        made = numba.njit(**options)(function)
    return made


# With one thread there must be no pool: its idle threads would spin and slow that thread down.
PARALLEL = torch.get_num_threads() > 1
_attend = compiled(attend, PARALLEL)
