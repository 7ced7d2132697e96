"""What products on the CPU read: matrices in panels, copied or in int8, and rows in int16."""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from musicgen.decoder.kernels.arithmetic import STORED, floats, jit, jit_fast
from musicgen.decoder.kernels.intrinsics import (
    PANEL,
    byte_pointer,
    float_of_bits,
    int16_pointer,
    int32_pointer,
)

# Depth of the part of a panel that is multiplied with all rows before the next part: it stays in
# the first-level cache. The sums of the parts are added in order. That is more exact than one sum
# over the whole depth, and does not depend on the number of rows either. With int8, the block of
# each output and of each row has a scale; its sum of products is below 2 ** 31.
DEPTH_BLOCK = 256
LARGEST_INT8 = 127
LARGEST_INT16 = 32767


def packer(size):
    """The compiled function that packs elements of this size."""
    view, _, _ = STORED[size]
    line = 64 // size  # elements of one line of a cache, which is read at once

    @jit
    def pack(op, first, last):
        depth = op.depth
        for panel in range(first, last):
            count = min(PANEL, op.width - panel * PANEL)
            offset = size * panel * PANEL * depth
            x, y = view(op.x + offset, count * depth), view(op.y + offset, PANEL * depth)
            for start in range(0, depth, line):
                for i in range(count):
                    for step in range(start, min(start + line, depth)):
                        y[step * PANEL + i] = x[i * depth + step]

    return pack


def quantizer(size):
    """The compiled function that quantizes numbers of this size."""
    view, number, _ = STORED[size]

    @jit
    def quantize(op, first, last):
        depth = op.depth
        blocks = (depth + DEPTH_BLOCK - 1) // DEPTH_BLOCK
        for panel in range(first, last):
            count = (depth + 1) // 2 * 2 * PANEL
            panels = numba.carray(byte_pointer(op.y + panel * count), (count,))
            scales = floats(op.b + 4 * panel * blocks * PANEL, blocks * PANEL)
            for i in range(min(PANEL, op.width - panel * PANEL)):
                x = view(op.x + size * (panel * PANEL + i) * depth, depth)
                for block in range(blocks):
                    start = block * DEPTH_BLOCK
                    stop = min(start + DEPTH_BLOCK, depth)
                    top = np.float32(0.0)
                    for step in range(start, stop):
                        top = max(top, abs(number(x[step])))
                    scales[block * PANEL + i] = top / np.float32(LARGEST_INT8)
                    inverse = np.float32(LARGEST_INT8) / top if top > 0 else np.float32(0.0)
                    for step in range(start, stop):
                        nearest = math.floor(number(x[step]) * inverse + np.float32(0.5))
                        place = (step // 2 * PANEL + i) * 2 + step % 2
                        panels[place] = np.int8(np.int32(nearest))

    return quantize


@jit_fast
def round_rows(op, first, last):
    """Round rows to int16, each block with its own scale, as products of int8 read them."""
    depth, width = op.depth, op.width
    blocks = (depth + DEPTH_BLOCK - 1) // DEPTH_BLOCK
    for row in range(first, last):
        x = floats(op.x + 4 * row * depth, depth)
        bits = numba.carray(int32_pointer(op.x + 4 * row * depth), (depth,))
        y = numba.carray(int16_pointer(op.y + 2 * row * width), (width,))
        scales = floats(op.b + 4 * row * blocks, blocks)
        for block in range(blocks):
            start = block * DEPTH_BLOCK
            stop = min(start + DEPTH_BLOCK, depth)
            # As integers, the bits of positive numbers are in the order of the numbers. Those of
            # infinity and NaN are above all others, and then make the scale and so the product NaN.
            top_bits = np.int32(0)
            for step in range(start, stop):
                top_bits = max(top_bits, bits[step] & np.int32(0x7FFFFFFF))
            top = float_of_bits(top_bits)
            scales[block] = top / np.float32(LARGEST_INT16)
            inverse = np.float32(LARGEST_INT16) / top if top > 0 else np.float32(0.0)
            for step in range(start, stop):
                y[step] = np.int16(np.int32(math.floor(x[step] * inverse + np.float32(0.5))))
        if width > depth:
            y[depth] = 0
