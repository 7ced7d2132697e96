"""How a product of rows [R, D] with a matrix [N, D] is cut into Triton programs.

The cut does not change a bit of the result. An element is the sum of `CHUNKS` partial sums, one per
part of the depth D; the instruction and the order of additions are the same in every cut.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from musicgen.decoder.kernels.compiler import triton

# Partial sums per element, by the use of the product (`THEN` in `fused`). They are independent of
# each other; with "add", different programs may compute them. Changing these changes results.
CHUNKS = {"store": 2, "gelu": 2, "append": 2, "add": 4}
FEW = 16  # up to this many rows, almost all bytes that a program reads are weights
DEPTH = 256  # largest depth of the tiles of all chunks of a program together
LARGEST = 64 * 64  # elements of a program's result
INTERPRETED = 4  # processors assumed by Triton's interpreter; few, so that it runs wide programs


@dataclass(frozen=True)
class Cut:
    """The work of one program."""

    rows: int  # of x
    columns: int  # rows of the matrix per strip
    strips: int
    parts: int  # programs per element: 1 for all of its chunks, or one for each chunk
    depth: int  # of a tile of one chunk
    warps: int
    stages: int  # tiles in flight, plus one


def cut(rows: int, width: int, depth: int, then: str, device: torch.device) -> Cut:
    """The cut for x [rows, depth] and a matrix [width, depth] of two-byte numbers."""
    chunks = CHUNKS[then]
    processors, memory = _resources(device)
    parts = chunks if then == "add" and rows > FEW else 1
    tile_rows, columns, strips = _tile(rows, width, parts, processors)
    warps = 2 if rows <= FEW else 4
    own = chunks // parts
    step = 2 * own * (tile_rows + strips * columns)  # bytes of a tile per unit of its depth
    programs = triton.cdiv(rows, tile_rows) * (width // (columns * strips)) * parts
    available = memory if programs <= processors else memory // 2
    # The deepest tile of which two fit; each thread should copy 16 bytes if the depth allows it.
    # Beside the largest sums and GELU's arithmetic, the deepest would take too many registers.
    crowded = then == "gelu" and tile_rows * strips * columns >= LARGEST
    deepest = DEPTH // own // (2 if crowded else 1)
    whole = [size for size in (128, 64, 32, 16) if depth // chunks % size == 0]
    fit = (
        size
        for size in whole
        if size <= deepest and (2 * size * step <= available or size * columns < 512 * warps)
    )
    deep = next(fit, whole[-1])
    # At most half of the memory, because the next launch may start beside this one.
    stages = 1 + max(2, min(7, memory // (2 * deep * step)))
    return Cut(tile_rows, columns, strips, parts, deep, warps, stages)


def _tile(rows: int, width: int, parts: int, processors: int) -> tuple[int, int, int]:
    """Rows, columns of a strip and strips of a program.

    Few rows: narrow matrices are cut finer, so that every processor gets a part. Many rows: every
    program reads its rows again, so the tile is the one that minimizes the reads of the busiest
    processor. No strip is wider than 32 columns: from 64 columns on, some GPUs would multiply with
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
    """The number of processors, and the bytes of shared memory available to one program."""
    if device.type == "cpu":
        return INTERPRETED, 99 * 1024
    properties = torch.cuda.get_device_properties(device)
    memory: int = getattr(properties, "shared_memory_per_block_optin", 48 * 1024)
    return properties.multi_processor_count, memory
