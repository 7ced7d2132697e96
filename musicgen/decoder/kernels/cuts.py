"""How a product of rows [R, D] with a matrix [N, D] is cut into programs.

Nothing of it changes a bit of the result. An element is the sum of `CHUNKS` sums over as many parts
of the depth D; which instruction adds to them, and in which order, is the same in every cut.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from musicgen.decoder.kernels.compiler import triton

# Sums that an element is made of, by what becomes of the product: they wait only for themselves,
# and where the residual is added to, programs may share them. Belongs to the result.
CHUNKS = {"store": 2, "gelu": 2, "append": 2, "add": 4}
FEW = 16  # rows, up to which nearly all that a program reads is weights
DEPTH = 256  # of D, at most, that all chunks of a program are on together
INTERPRETED = 4  # processors, so that the interpreter meets wide programs too


@dataclass(frozen=True)
class Cut:
    """What one program gets."""

    rows: int  # of x
    columns: int  # rows of the matrix to a strip
    strips: int
    parts: int  # programs that share the chunks of the same elements: 1, or one for each chunk
    depth: int  # of each chunk at a time
    warps: int
    stages: int  # tiles on their way, and one


def cut(rows: int, width: int, depth: int, then: str, device: torch.device) -> Cut:
    """For x [rows, depth] and a matrix [width, depth] of two bytes."""
    chunks = CHUNKS[then]
    processors, room = _resources(device)
    parts = chunks if then == "add" and rows > FEW else 1
    tile_rows, columns, strips = _tile(rows, width, parts, processors)
    warps = 2 if rows <= FEW else 4
    own = chunks // parts
    step = 2 * own * (tile_rows + strips * columns)  # bytes of a tile, for each of its depth
    programs = triton.cdiv(rows, tile_rows) * (width // (columns * strips)) * parts
    mine = room if programs <= processors else room // 2
    # As deep as two tiles have room for; but all threads copy 16 bytes, if the depth allows it.
    deepest = DEPTH // own
    whole = [size for size in (128, 64, 32, 16) if depth // chunks % size == 0]
    fit = (
        size
        for size in whole
        if size <= deepest and (2 * size * step <= mine or size * columns < 512 * warps)
    )
    deep = next(fit, whole[-1])
    # What fits twice, for the launch that follows may begin beside this one.
    stages = 1 + max(2, min(7, room // (2 * deep * step)))
    return Cut(tile_rows, columns, strips, parts, deep, warps, stages)


def _tile(rows: int, width: int, parts: int, processors: int) -> tuple[int, int, int]:
    """Rows, columns of a strip and strips of a program.

    Few rows: narrow matrices are cut finer, so that every processor gets a part. Many: every
    program reads its rows again, so rows and columns are cut such that the processor that has most
    to read has least. No strip is wider than 32 columns: from 64 on some GPUs would multiply by
    another instruction, whose sums may differ.
    """
    if rows <= FEW:
        return max(8, triton.next_power_of_2(rows)), 32 if width >= 4096 else 16, 1

    def read(tile: tuple[int, int, int]) -> tuple[int, int, int]:
        tile_rows, columns, strips = tile
        programs = triton.cdiv(rows, tile_rows) * (width // (columns * strips)) * parts
        most = triton.cdiv(programs, processors) * (tile_rows + columns * strips)
        return most, programs, strips

    heights = [height for height in (16, 32, 64) if height < 2 * rows]
    tiles = itertools.product(heights, (16, 32), (1, 2, 3))
    return min((tile for tile in tiles if width % (tile[1] * tile[2]) == 0), key=read)


def _resources(device: torch.device) -> tuple[int, int]:
    """Processors, and bytes of shared memory that one program may have."""
    if device.type == "cpu":
        return INTERPRETED, 99 * 1024
    properties = torch.cuda.get_device_properties(device)
    room: int = getattr(properties, "shared_memory_per_block_optin", 48 * 1024)
    return properties.multi_processor_count, room
