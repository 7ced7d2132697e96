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

import numpy as np
from numba import types

from musicgen.decoder.kernels.arithmetic import (
    STORED,
    erf,
    exp,
    floats,
    integers,
    jit,
    jit_contract,
    jit_fast,
    jit_inline,
)
from musicgen.decoder.kernels.intrinsics import (
    FEW_ROWS,
    PANEL,
    PART,
    STEP_BYTES,
    TILE_ROWS,
    add_atomic,
    load_atomic,
    tile,
)
from musicgen.decoder.kernels.layout import DEPTH_BLOCK, packer, quantizer, round_rows


class Kind(IntEnum):
    """The kinds of operations."""

    NORM = 0  # y [rows, width] = LayerNorm of x [rows, width], with scale a and shift b
    FLOAT32 = 1  # y [rows, width] = x [rows, depth] times the panels a of float32
    FLOAT16 = 2  # the same with panels of float16
    APPEND = 3  # write the keys and values of x [rows, 3 width] into the caches a and b
    ATTEND = 4  # y [rows, width] = attention of the queries x over the caches a and b
    PACK = 5  # y [width / PANEL, depth, PANEL] = x [width, depth], elements of `size` bytes
    INT8 = 6  # FLOAT32 with panels of int8, their scales b [width / PANEL, blocks, PANEL]
    QUANTIZE = 7  # PACK to int8, and write the scales b
    ROUND = 8  # y int16 [rows, width] = x [rows, depth], width even, and write the scales b


class Then(IntEnum):
    """The use of a product's result."""

    STORE = 0
    GELU = 1
    ADD = 2  # to the numbers in y


# All fields but `number` are int64: addresses, counts and lengths in elements.
Operation = np.dtype(
    [
        *((name, np.int64) for name in ("kind", "then", "tasks", "chunk", "x", "y", "a", "b")),
        *((name, np.int64) for name in ("rows", "depth", "width", "stride")),
        ("x_scales", np.int64),  # INT8: the scales [rows, blocks] of its x, which ROUND has written
        ("size", np.int64),  # bytes of a number in the caches, or in the matrix to pack
        *((name, np.int64) for name in ("heads", "head_dim", "capacity")),
        *((name, np.int64) for name in ("cache_rows", "positions")),  # addresses of int64 [rows]
        ("number", np.float64),  # NORM: epsilon; ATTEND: the scale of scores
    ]
)

SPINS = 2000  # of a thread that waits, before it lets others use its processor

ROOT_HALF = np.float32(math.sqrt(0.5))
NORM, FLOAT32, FLOAT16, APPEND, ATTEND, PACK, INT8, QUANTIZE, ROUND = map(int, Kind)
STORE, GELU, ADD = map(int, Then)
_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@jit_fast
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
    multiply, step_bytes = tile(kind), STEP_BYTES[kind]
    per_step = 2 if kind == "int8" else 1  # of the depth
    element = 4 // per_step  # bytes of a number of x
    column_bytes = step_bytes // PANEL

    @jit
    def sums_of(op, index, sums):
        """Write x [rows, depth] times panel `index` to sums [rows, PANEL]."""
        rows, depth = op.rows, op.depth
        steps = (depth + per_step - 1) // per_step
        stride = 4 * steps
        blocks = (depth + DEPTH_BLOCK - 1) // DEPTH_BLOCK
        panel = op.a + step_bytes * steps * index
        scales = op.b + 4 * PANEL * blocks * index
        columns, most = (PANEL, FEW_ROWS) if rows <= FEW_ROWS else (PART, TILE_ROWS)
        groups = (rows + most - 1) // most
        for i in range(rows * PANEL):
            sums[i] = np.float32(0.0)
        address = sums.ctypes.data
        for block in range(blocks):
            start = block * DEPTH_BLOCK
            length = min(DEPTH_BLOCK, steps * per_step - start)
            for column in range(0, PANEL, columns):
                row = 0
                for group in range(groups):
                    count = (rows - row + groups - group - 1) // (groups - group)
                    multiply(
                        op.x + row * stride + element * start,
                        stride,
                        panel + step_bytes * (start // per_step) + column_bytes * column,
                        scales + 4 * (PANEL * block + column),
                        op.x_scales + 4 * (row * blocks + block),
                        4 * blocks,
                        address + 4 * (PANEL * row + column),
                        length,
                        count,
                        columns,
                    )
                    row += count

    @jit
    def product(op, first, last, sums):
        for index in range(first, last):
            sums_of(op, index, sums)
            finish(op, index * PANEL, sums)

    return product


@jit_contract
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


def _append(size):
    """The compiled function that appends to caches of numbers of this size."""
    view, _, stored = STORED[size]

    @jit
    def append(op, first, last):
        width, head_dim = op.width, op.head_dim
        cache_rows, positions = integers(op.cache_rows, op.rows), integers(op.positions, op.rows)
        for row in range(first, last):
            x = floats(op.x + 4 * row * 3 * width, 3 * width)
            for head in range(op.heads):
                place = cache_rows[row] * op.heads + head
                offset = size * (place * op.capacity + positions[row]) * head_dim
                keys, values = view(op.a + offset, head_dim), view(op.b + offset, head_dim)
                for i in range(head_dim):
                    keys[i] = stored(x[width + head * head_dim + i])
                    values[i] = stored(x[2 * width + head * head_dim + i])

    return append


def _attend(size):
    """The compiled function that attends to caches of numbers of this size."""
    view, number, _ = STORED[size]

    @jit_fast
    def attend(op, first, last, weights):
        """Attend with heads `first` to `last`, counted over all rows; row i sees `positions[i]`."""
        heads, head_dim = op.heads, op.head_dim
        cache_rows, lengths = integers(op.cache_rows, op.rows), integers(op.positions, op.rows)
        for task in range(first, last):
            row, head = task // heads, task % heads
            length = lengths[row]
            query = floats(op.x + 4 * (row * op.stride + head * head_dim), head_dim)
            y = floats(op.y + 4 * (row * op.width + head * head_dim), head_dim)
            start = size * (cache_rows[row] * heads + head) * op.capacity * head_dim
            keys, values = (
                view(op.a + start, length * head_dim),
                view(op.b + start, length * head_dim),
            )
            top = np.float32(-np.inf)
            for position in range(length):
                score = np.float32(0.0)
                for i in range(head_dim):
                    score += query[i] * number(keys[position * head_dim + i])
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
                    y[i] += weights[position] * number(values[position * head_dim + i])
            for i in range(head_dim):
                y[i] /= total

    return attend


product_float32, product_float16, product_int8 = map(_product, STEP_BYTES)
append4, append2 = map(_append, STORED)
attend4, attend2 = map(_attend, STORED)
pack4, pack2 = map(packer, STORED)
quantize4, quantize2 = map(quantizer, STORED)


@jit_inline
def run_tasks(op, first, last, scratch):
    """Run tasks `first` to `last` of an operation."""
    if op.kind == FLOAT16:
        product_float16(op, first, last, scratch)
    elif op.kind == FLOAT32:
        product_float32(op, first, last, scratch)
    elif op.kind == INT8:
        product_int8(op, first, last, scratch)
    elif op.kind == NORM:
        norm(op, first, last)
    elif op.kind == ROUND:
        round_rows(op, first, last)
    elif op.kind == ATTEND:
        if op.size == 4:
            attend4(op, first, last, scratch)
        else:
            attend2(op, first, last, scratch)
    elif op.kind == APPEND:
        if op.size == 4:
            append4(op, first, last)
        else:
            append2(op, first, last)
    elif op.kind == PACK:
        if op.size == 4:
            pack4(op, first, last)
        else:
            pack2(op, first, last)
    elif op.size == 4:
        quantize4(op, first, last)
    else:
        quantize2(op, first, last)


@jit_inline
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
