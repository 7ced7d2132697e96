"""Brings matrices into panels, which products on the CPU read: copied, or rounded to int8."""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from musicgen.decoder.kernels.arithmetic import STORED, floats, jit
from musicgen.decoder.kernels.intrinsics import PANEL, byte_pointer

# Depth of the part of a panel that is multiplied with all rows before the next part: it stays in
# the first-level cache. The sums of the parts are added in order. That is more exact than one sum
# over the whole depth, and does not depend on the number of rows either. In a panel of int8, the
# block of each output has a scale.
DEPTH_BLOCK = 256
LARGEST_INT8 = 127


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
            panels = numba.carray(byte_pointer(op.y + panel * depth * PANEL), (depth * PANEL,))
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
                        panels[step * PANEL + i] = np.int8(np.int32(nearest))

    return quantize
