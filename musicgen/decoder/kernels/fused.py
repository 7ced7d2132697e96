"""The Triton kernels of `products`: a product fused with the operations around it.

Every weight is read once, and reading weights takes most of the time: a program multiplies all rows
(or some, if there are many) with a few rows of the matrix, prefetches several tiles, and applies
the operation that follows before it writes. A row's result does not depend on other rows: `cuts`.

With few rows, every program recomputes the LayerNorm, which is faster than another launch. With
many rows, a separate launch computes it and also adds the partial sums of the product before.
"""

# Kernels are Triton's language, not Python's, and have no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: N803

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from musicgen.decoder.kernels.compiler import begin, jit, launch, tl, triton
from musicgen.decoder.kernels.cuts import CHUNKS, cut

FUSED_NORM_MAX_ROWS = 4  # up to this many rows, each program recomputes the LayerNorm itself
# Sums over a row must round in the same way in every kernel. Triton chooses a tensor's layout per
# kernel, but a tile with four numbers per thread has only one; tiles are added in order.
NORM_WARPS, NORM_TILE = 2, 256


@dataclass(frozen=True)
class Pending:
    """A residual [R, D] and partial sums [C, R, D] of a product, which the next norm adds to it."""

    residual: Tensor
    parts: Tensor


Stream: TypeAlias = Tensor | Pending


def norm_linear(x: Stream, norm: nn.LayerNorm, weight: Tensor, *, gelu: bool = False) -> Tensor:
    """`products.norm_linear`."""
    residual = _residual(x)
    y = torch.empty(len(residual), len(weight), dtype=weight.dtype, device=residual.device)
    _normed_product(x, norm, weight, y, "gelu" if gelu else "store")
    return y


def norm_qkv(
    x: Stream,
    norm: nn.LayerNorm,
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """`products.norm_qkv`."""
    q = torch.empty_like(_residual(x), dtype=weight.dtype)
    _normed_product(x, norm, weight, q, "append", keys, values, rows, positions)
    return q


def linear_add(x: Tensor, weight: Tensor, residual: Stream) -> Stream:
    """`products.linear_add`; with many rows, a norm must follow to add the partial sums."""
    residual = _residual(residual)  # earlier partial sums are already added
    parts = cut(len(x), len(weight), x.shape[1], "add", x.device).parts
    if parts == 1:
        _product(x, None, weight, residual, "add")
        return residual
    pending = Pending(residual, residual.new_empty(parts, *residual.shape))
    _product(x, None, weight, pending.parts, "add")
    return pending


def _residual(x: Stream) -> Tensor:
    return x if isinstance(x, Tensor) else x.residual


def _normed_product(
    x: Stream, norm: nn.LayerNorm, weight: Tensor, y: Tensor, then: str, *cache: Tensor
) -> None:
    if isinstance(x, Tensor) and len(x) <= FUSED_NORM_MAX_ROWS:
        _product(x, norm, weight, y, then, *cache)
        return
    residual, parts = (x, None) if isinstance(x, Tensor) else (x.residual, x.parts)
    normed = torch.empty_like(residual, dtype=weight.dtype)
    rows, dim = residual.shape
    _norm_kernel[(rows,)](
        residual, parts, norm.weight, norm.bias, normed, rows, norm.eps, D=dim, TILE=NORM_TILE,
        PARTS=0 if parts is None else len(parts), num_warps=NORM_WARPS, **launch(residual.device),
    )  # fmt: skip
    _product(normed, None, weight, y, then, *cache)


def _product(
    x: Tensor,
    norm: nn.LayerNorm | None,
    weight: Tensor,
    y: Tensor,
    then: str,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    cache_rows: Tensor | None = None,
    positions: Tensor | None = None,
) -> None:
    """Product of x [R, D], after `norm` if given, with weight [N, D]; `then` as in the kernel."""
    (rows, depth), width = x.shape, len(weight)
    plan = cut(rows, width, depth, then, x.device)
    scale, shift, eps = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
    head_dim, row_stride, head_stride = 1, 0, 0
    if keys is not None:
        head_dim, (row_stride, head_stride) = keys.shape[3], keys.stride()[:2]
    # Programs with the same weights run side by side, so that the weights are read once.
    grid = triton.cdiv(rows, plan.rows), width // (plan.columns * plan.strips), plan.parts
    _product_kernel[grid](
        x, scale, shift, weight, y, keys, values, cache_rows, positions, rows, width, row_stride,
        head_stride, eps, NORM=rows if norm else 0, THEN=then, HEAD_DIM=head_dim, D=depth,
        TILE=NORM_TILE, CHUNKS=CHUNKS[then], PARTS=plan.parts,
        ROWS=plan.rows, COLUMNS=plan.columns, STRIPS=plan.strips, DEPTH=plan.depth,
        num_warps=plan.warps, num_stages=plan.stages, **launch(x.device),
    )  # fmt: skip


@jit
def _row(x, D: tl.constexpr, TILE: tl.constexpr):
    """D numbers as tiles, padded with zeros."""
    tiles = ()
    for first in tl.static_range(0, D, TILE):
        column = first + tl.arange(0, TILE)
        tiles += (tl.load(x + column, mask=column < D, other=0.0),)
    return tiles


@jit
def _moments(tiles, eps, D: tl.constexpr, TILE: tl.constexpr):
    """The mean of a row, and the inverse of its standard deviation."""
    total = tl.zeros((TILE,), dtype=tl.float32)
    for tile in tl.static_range((D + TILE - 1) // TILE):
        total += tiles[tile]
    mean = tl.sum(total, axis=0) / D
    squares = tl.zeros((TILE,), dtype=tl.float32)
    for tile in tl.static_range((D + TILE - 1) // TILE):
        inside = tile * TILE + tl.arange(0, TILE) < D
        centred = tl.where(inside, tiles[tile] - mean, 0.0)
        squares = tl.fma(centred, centred, squares)
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=0) / D + eps)


# Code for special numbers of rows, such as multiples of 16, would gain nothing.
@jit(do_not_specialize=["rows"])
def _norm_kernel(
    x, parts, scale, shift, y, rows, eps,
    D: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """LayerNorm of one row in float32, after adding pending partial sums to the row."""
    begin(DEPENDENT)
    start = tl.program_id(0) * D
    tiles = _row(x + start, D, TILE)
    if PARTS > 0:
        added = _row(parts + start, D, TILE)
        for part in tl.static_range(1, PARTS):
            added = _sums(added, _row(parts + part * rows * D + start, D, TILE), D, TILE)
        tiles = _sums(added, tiles, D, TILE)
    mean, inverse = _moments(tiles, eps, D, TILE)
    for tile in tl.static_range((D + TILE - 1) // TILE):
        column = tile * TILE + tl.arange(0, TILE)
        inside = column < D
        by = tl.load(scale + column, mask=inside, other=0.0)
        plus = tl.load(shift + column, mask=inside, other=0.0)
        normed = tl.fma((tiles[tile] - mean) * inverse, by, plus)
        if PARTS > 0:
            tl.store(x + start + column, tiles[tile], mask=inside)
        tl.store(y + start + column, normed.to(y.dtype.element_ty), mask=inside)


@jit
def _sums(ours, theirs, D: tl.constexpr, TILE: tl.constexpr):
    """The sum of two rows, tile by tile."""
    sums = ()
    for tile in tl.static_range((D + TILE - 1) // TILE):
        sums += (ours[tile] + theirs[tile],)
    return sums


@jit
def _fetch(pointers):
    """Prefetch the 128-byte lines at these addresses."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], tl.int32, False, 1
    )


@jit(do_not_specialize=["rows"])
def _product_kernel(
    x, scale, shift, weight, y, keys, values, cache_rows, positions, rows, width, row_stride,
    head_stride, eps,
    NORM: tl.constexpr, THEN: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIPS: tl.constexpr, DEPTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS rows, STRIPS strips of COLUMNS columns of x [rows, D] @ weight [width, D].T, in float32.

    NORM: the number of rows if the factor is their LayerNorm, 0 if it is the rows themselves.
    THEN: "store" the product in y, store its "gelu", or "add" it to y; "append" stores the first
    third of the columns in y and the others in the caches, at the cache row and position of each
    row. PARTS above 1: compute the sum of one chunk of D, stored in y [PARTS, rows, width].
    """
    # The weights are the first factor, whose tiles need at least 16 rows; 8 are enough for x.
    own: tl.constexpr = CHUNKS // PARTS
    chunk_depth: tl.constexpr = D // CHUNKS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    strip_column = tl.program_id(1) * STRIPS * COLUMNS + tl.arange(0, COLUMNS)
    own_depth = tl.program_id(2) * chunk_depth
    step = tl.arange(0, DEPTH)
    there = (row < rows)[:, None]
    x_tile = x + row[:, None] * D + own_depth + step[None, :]
    weight_tile = weight + strip_column[:, None] * D + own_depth + step[None, :]
    if DEPENDENT:  # prefetch the first weights into the second-level cache
        line = 64 * tl.arange(0, (DEPTH + 63) // 64)
        lines = weight + strip_column[:, None] * D + own_depth + line[None, :]
        for chunk in tl.static_range(own):
            for strip in tl.static_range(STRIPS):
                _fetch(lines + strip * COLUMNS * D + chunk * chunk_depth)
    begin(DEPENDENT)
    mean = tl.zeros((ROWS,), dtype=tl.float32)
    inverse = tl.zeros((ROWS,), dtype=tl.float32)
    for normed in tl.static_range(NORM):
        row_mean, row_inverse = _moments(_row(x + normed * D, D, TILE), eps, D, TILE)
        mean = tl.where(row == normed, row_mean, mean)
        inverse = tl.where(row == normed, row_inverse, inverse)

    sums = ()
    for _ in tl.static_range(own * STRIPS):
        sums += (tl.zeros((COLUMNS, ROWS), dtype=tl.float32),)
    for start in range(0, chunk_depth, DEPTH):
        longer = ()
        for chunk in tl.static_range(own):
            at = chunk * chunk_depth + start
            factor = tl.load(x_tile + at, mask=there, other=0.0)
            if NORM > 0:
                by = tl.load(scale + at + step)[None, :]
                plus = tl.load(shift + at + step)[None, :]
                factor = tl.fma((factor - mean[:, None]) * inverse[:, None], by, plus)
            factor = tl.trans(factor.to(weight.dtype.element_ty))
            for strip in tl.static_range(STRIPS):
                tile = tl.load(weight_tile + strip * COLUMNS * D + at)
                longer += (tl.dot(tile, factor, sums[chunk * STRIPS + strip]),)
        sums = longer

    for strip in tl.static_range(STRIPS):
        total = sums[strip]
        for chunk in tl.static_range(1, own):
            total += sums[chunk * STRIPS + strip]
        total = tl.trans(total)
        column = strip_column + strip * COLUMNS
        if THEN == "append":
            dim = width // 3
            part = (tl.program_id(1) * STRIPS + strip) * COLUMNS // dim
            place = column - part * dim
            if part == 0:
                q = y + row[:, None] * dim + place[None, :]
                tl.store(q, total.to(y.dtype.element_ty), mask=there)
            else:
                position = tl.load(positions + row, mask=row < rows, other=0)
                cache_row = tl.load(cache_rows + row, mask=row < rows, other=0)
                in_cache = cache_row * row_stride + position * HEAD_DIM
                in_row = (place // HEAD_DIM) * head_stride + place % HEAD_DIM
                offset = in_cache[:, None] + in_row[None, :]
                if part == 1:
                    tl.store(keys + offset, total.to(keys.dtype.element_ty), mask=there)
                else:
                    tl.store(values + offset, total.to(values.dtype.element_ty), mask=there)
        else:
            out = y + row[:, None] * width + column[None, :]
            if THEN == "gelu":
                total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
            if PARTS > 1:
                out += tl.program_id(2) * rows * width
            elif THEN == "add":
                total += tl.load(out, mask=there, other=0.0)
            tl.store(out, total.to(y.dtype.element_ty), mask=there)
