"""The interpreter of a recorded decode step: one compiled call that runs all of its operations.

A program is an array of operations (`Operation`), each cut into independent tasks. Every thread
runs `work` on the same program: it claims tasks of an operation until none is left, waits until all
of them are done, and goes on to the next operation. A thread that the system has suspended
therefore delays only the tasks that it holds. A task writes the same bits whichever thread runs it,
so a result does not depend on the number of threads, and no output depends on other rows.
"""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from enum import IntEnum

import numba
import numpy as np
from numba import types

from musicgen.decoder.kernels.intrinsics import (
    ELEMENTS,
    PANEL,
    TILE_ROWS,
    add_atomic,
    float_of_bits,
    float_pointer,
    half_pointer,
    int_pointer,
    load_atomic,
    tile,
)


class Kind(IntEnum):
    """The kinds of operations."""

    NORM = 0  # y [rows, width] = LayerNorm of x [rows, width], with scale a and shift b
    FLOAT32 = 1  # y [rows, width] = x [rows, depth] times the panels a of float32
    FLOAT16 = 2  # the same with panels of float16
    APPEND = 3  # write the keys and values of x [rows, 3 width] into the caches a and b
    ATTEND = 4  # y [rows, width] = attention of the queries x over the caches a and b
    PACK = 5  # y [width / PANEL, depth, PANEL] = x [width, depth], elements of `size` bytes


class Then(IntEnum):
    """The use of a product's result."""

    STORE = 0
    GELU = 1
    ADD = 2  # to the numbers in y


# All fields but `number` are int64: addresses, counts and lengths in elements.
Operation = np.dtype(
    [
        *((name, np.int64) for name in ("kind", "then", "tasks", "chunk", "x", "y", "a", "b")),
        *((name, np.int64) for name in ("rows", "depth", "width", "stride", "size")),
        *((name, np.int64) for name in ("heads", "head_dim", "capacity")),
        *((name, np.int64) for name in ("cache_rows", "positions")),  # addresses of int64 [rows]
        ("number", np.float64),  # NORM: epsilon; ATTEND: the scale of scores
    ]
)

# Depth of the part of a panel that is multiplied with all rows before the next part: it stays in
# the first-level cache. The sums of the parts are added in order. That is more exact than one sum
# over the whole depth, and does not depend on the number of rows either.
DEPTH_BLOCK = 256
SPINS = 2000  # of a thread that waits, before it lets others use its processor

ROOT_HALF = np.float32(math.sqrt(0.5))
NORM, FLOAT32, FLOAT16, APPEND, ATTEND, PACK = map(int, Kind)
STORE, GELU, ADD = map(int, Then)
_jit = numba.njit(nogil=True, error_model="numpy")
# Sums may be reordered; NaN and infinity keep their meaning.
_jit_fast = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_jit_contract = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@_jit
def floats(address, count):
    return numba.carray(float_pointer(address), (count,))


@_jit
def integers(address, count):
    return numba.carray(int_pointer(address), (count,))


@_jit_contract
def exp(x):
    """e ** x for x <= 88, to about one unit in the last place; below -87 it is e ** -87."""
    x = max(x, np.float32(-87.0))
    power = np.float32(math.floor(x * np.float32(1.44269504) + np.float32(0.5)))
    # x = power * log(2) + r; log(2) in two parts, of which the first has few bits.
    r = (x - power * np.float32(0.693359375)) + power * np.float32(2.12194440e-4)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * float_of_bits((np.int32(power) + np.int32(127)) << np.int32(23))


@_jit_contract
def erf(x):
    """The error function to about one unit in the last place.

    The polynomials are least-squares fits of erf(x) / x - 1 by x ** 2 up to 1, and of
    log(1 - erf(x)) by x between 1 and 4.
    """
    size = min(abs(x), np.float32(4.0))
    t = size * size
    p = np.float32(7.88911129e-05)
    p = p * t + np.float32(-8.02083872e-04)
    p = p * t + np.float32(5.18953521e-03)
    p = p * t + np.float32(-2.68544443e-02)
    p = p * t + np.float32(1.12836003e-01)
    p = p * t + np.float32(-3.76126260e-01)
    p = p * t + np.float32(1.28379166e-01)
    near = size + size * p
    q = np.float32(-2.16870267e-05)
    q = q * size + np.float32(4.41338547e-04)
    q = q * size + np.float32(-4.20457311e-03)
    q = q * size + np.float32(2.52082869e-02)
    q = q * size + np.float32(-1.08418629e-01)
    q = q * size + np.float32(-6.33219838e-01)
    q = q * size + np.float32(-1.12957847)
    q = q * size + np.float32(1.88046033e-04)
    far = np.float32(1.0) - exp(q)
    value = near if size < np.float32(1.0) else far
    return value if x >= np.float32(0.0) else -value


@_jit_fast
def norm(op, first, last):
    width = op.width
    scale, shift = floats(op.a, width), floats(op.b, width)
    for row in range(first, last):
        x, y = floats(op.x + 4 * row * width, width), floats(op.y + 4 * row * width, width)
        total = np.float32(0.0)
        for i in range(width):
            total += x[i]
        mean = total / np.float32(width)
        squares = np.float32(0.0)
        for i in range(width):
            squares += (x[i] - mean) * (x[i] - mean)
        variance = squares / np.float32(width) + np.float32(op.number)
        inverse = np.float32(1.0) / np.float32(math.sqrt(variance))
        for i in range(width):
            y[i] = (x[i] - mean) * inverse * scale[i] + shift[i]


def _product(kind):
    """The compiled function that runs tasks of a product with this kind of weights."""
    multiply, size = tile(kind), ELEMENTS[kind][1]

    @_jit
    def sums_of(op, panel, sums):
        """Write x [rows, depth] times one panel to sums [rows, PANEL]."""
        rows, depth = op.rows, op.depth
        groups = (rows + TILE_ROWS - 1) // TILE_ROWS
        for i in range(rows * PANEL):
            sums[i] = np.float32(0.0)
        address = sums.ctypes.data
        for start in range(0, depth, DEPTH_BLOCK):
            length = min(DEPTH_BLOCK, depth - start)
            row = 0
            for group in range(groups):
                count = (rows - row + groups - group - 1) // (groups - group)
                multiply(
                    op.x + 4 * (row * depth + start),
                    4 * depth,
                    panel + size * PANEL * start,
                    address + 4 * PANEL * row,
                    length,
                    count,
                )
                row += count

    @_jit
    def product(op, first, last, sums):
        for index in range(first, last):
            sums_of(op, op.a + size * PANEL * op.depth * index, sums)
            finish(op, index * PANEL, sums)

    return product


@_jit_contract
def finish(op, first, sums):
    """Use sums [rows, PANEL], of the outputs from `first` on, as the operation says."""
    count = min(PANEL, op.width - first)
    for row in range(op.rows):
        y = floats(op.y + 4 * (row * op.width + first), count)
        if op.then == STORE:
            for i in range(count):
                y[i] = sums[row * PANEL + i]
        elif op.then == ADD:
            for i in range(count):
                y[i] += sums[row * PANEL + i]
        else:
            for i in range(count):
                value = sums[row * PANEL + i]
                y[i] = value * np.float32(0.5) * (np.float32(1.0) + erf(value * ROOT_HALF))


@_jit
def append(op, first, last):
    width, head_dim = op.width, op.head_dim
    cache_rows, positions = integers(op.cache_rows, op.rows), integers(op.positions, op.rows)
    for row in range(first, last):
        x = floats(op.x + 4 * row * 3 * width, 3 * width)
        for head in range(op.heads):
            place = cache_rows[row] * op.heads + head
            offset = 4 * (place * op.capacity + positions[row]) * head_dim
            keys, values = floats(op.a + offset, head_dim), floats(op.b + offset, head_dim)
            for i in range(head_dim):
                keys[i] = x[width + head * head_dim + i]
                values[i] = x[2 * width + head * head_dim + i]


@_jit_fast
def attend(op, first, last, weights):
    """Attention of heads `first` to `last`, counted over all rows; row i sees `positions[i]`."""
    heads, head_dim = op.heads, op.head_dim
    cache_rows, lengths = integers(op.cache_rows, op.rows), integers(op.positions, op.rows)
    for task in range(first, last):
        row, head = task // heads, task % heads
        length = lengths[row]
        query = floats(op.x + 4 * (row * op.stride + head * head_dim), head_dim)
        y = floats(op.y + 4 * (row * op.width + head * head_dim), head_dim)
        start = 4 * (cache_rows[row] * heads + head) * op.capacity * head_dim
        keys, values = (
            floats(op.a + start, length * head_dim),
            floats(op.b + start, length * head_dim),
        )
        top = np.float32(-np.inf)
        for position in range(length):
            score = np.float32(0.0)
            for i in range(head_dim):
                score += query[i] * keys[position * head_dim + i]
            weights[position] = score * np.float32(op.number)
            top = max(top, weights[position])
        total = np.float32(0.0)
        for position in range(length):
            weights[position] = exp(weights[position] - top)
            total += weights[position]
        for i in range(head_dim):
            y[i] = np.float32(0.0)
        for position in range(length):
            for i in range(head_dim):
                y[i] += weights[position] * values[position * head_dim + i]
        for i in range(head_dim):
            y[i] /= total


def _pack(pointer, size):
    """The compiled function that packs elements of this size."""
    line = 64 // size  # elements of one line of a cache, which is read at once

    @_jit
    def pack(op, first, last):
        depth = op.depth
        for panel in range(first, last):
            count = min(PANEL, op.width - panel * PANEL)
            offset = size * panel * PANEL * depth
            x = numba.carray(pointer(op.x + offset), (count * depth,))
            y = numba.carray(pointer(op.y + offset), (PANEL * depth,))
            for start in range(0, depth, line):
                for i in range(count):
                    for step in range(start, min(start + line, depth)):
                        y[step * PANEL + i] = x[i * depth + step]

    return pack


pack4, pack2 = _pack(float_pointer, 4), _pack(half_pointer, 2)
product_float32, product_float16 = map(_product, ("float32", "float16"))


@_jit
def run_tasks(op, first, last, scratch):
    """Run tasks `first` to `last` of an operation."""
    if op.kind == FLOAT16:
        product_float16(op, first, last, scratch)
    elif op.kind == ATTEND:
        attend(op, first, last, scratch)
    elif op.kind == NORM:
        norm(op, first, last)
    elif op.kind == APPEND:
        append(op, first, last)
    elif op.kind == FLOAT32:
        product_float32(op, first, last, scratch)
    elif op.size == 4:
        pack4(op, first, last)
    else:
        pack2(op, first, last)


@_jit
def work(program, counters, scratch):
    """Run a program together with all other threads that call this with the same counters.

    `counters` is the address of two int64 per operation, all 0: tasks claimed and tasks done.
    """
    for index in range(len(program)):
        op = program[index]
        claimed = counters + 16 * index
        done = claimed + 8
        while True:
            first = add_atomic(claimed, op.chunk)
            if first >= op.tasks:
                break
            last = min(first + op.chunk, op.tasks)
            run_tasks(op, first, last, scratch)
            add_atomic(done, last - first)
        spins = 0
        while load_atomic(done) < op.tasks:
            spins += 1
            if spins > SPINS:
                _yield_processor()
