"""Attention of one query per row over the filled part of that row's cache.

The Triton kernel processes the cache in splits of a fixed size. With few heads, each split has a
program, so that one clip can fill the GPU ("Flash-Decoding", Dao et al. 2023), and a second launch
combines the splits; with many heads, each head has one program. Both combine the same splits in the
same order, so a row's result does not depend on the other rows.
"""

# Kernels are Triton's language, not Python's, and have no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen.decoder.kernels.compiler import begin, jit, launch, tl, triton

SPLIT = 128  # positions
ENOUGH = 1.5  # heads per processor from which on each head has only one program
INTERPRETED = 16  # processors assumed by Triton's interpreter, so that it runs both forms


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    lengths: Tensor,
    shared: Tensor | None = None,
) -> Tensor:
    """Attention [R, H * Dh] of queries [R, H * Dh] over caches [any, H, S, Dh].

    Query i reads row `rows[i]` of the cache, of which `lengths[i]` positions are filled. The first
    `shared[i]` of them equal those of the cache's last row and may be read from there. This
    reference copies whole rows of the cache and masks the positions that are not filled.
    """
    _, heads, capacity, head_dim = keys.shape
    filled = torch.arange(capacity, device=q.device) < lengths[:, None]
    y = F.scaled_dot_product_attention(
        q.view(len(q), heads, 1, head_dim),
        keys[rows],
        values[rows],
        attn_mask=filled[:, None, None],
    )
    return y.reshape(len(q), heads * head_dim)


def attention_triton(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    lengths: Tensor,
    shared: Tensor | None = None,
) -> Tensor:
    """`attention` in float32 that reads filled positions only, shared ones from the last row."""
    count, (_, heads, capacity, head_dim) = len(q), keys.shape
    splits = triton.cdiv(capacity, SPLIT)
    whole = splits == 1 or count * heads >= ENOUGH * _processors(q.device)
    y = torch.empty_like(q)
    parts = tops = sums = y  # a placeholder to which nothing is written
    if not whole:
        parts = q.new_empty((count * heads, splits, head_dim), dtype=torch.float32)
        tops, sums = q.new_empty((2, count * heads, splits), dtype=torch.float32)
    row_stride, head_stride = keys.stride()[:2]
    _split_kernel[(count * heads, 1 if whole else splits)](
        q, keys, values, rows, lengths, lengths if shared is None else shared, y, parts,
        tops, sums, heads, splits, len(keys) - 1, row_stride, head_stride, head_dim**-0.5,
        HEAD_DIM=head_dim, SPLIT=SPLIT, SHARED=shared is not None, WHOLE=whole, num_warps=4,
        **launch(q.device),
    )  # fmt: skip
    if not whole:
        _combine_kernel[(count * heads,)](
            parts, tops, sums, lengths, y, heads, splits, HEAD_DIM=head_dim, SPLIT=SPLIT,
            num_warps=1, **launch(q.device),
        )  # fmt: skip
    return y


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@jit
def _split(
    q, keys, values, start, shared_start, shared, first, length, scale, HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The softmax maximum, the softmax sum and the weighted values of one split of one head."""
    lane = tl.arange(0, HEAD_DIM)
    position = first + tl.arange(0, SPLIT)
    filled = position < length
    place = start + position * HEAD_DIM
    if SHARED:
        place = tl.where(position < shared, shared_start + position * HEAD_DIM, place)
    offset = place[:, None] + lane[None, :]
    # Both loads are issued before the arithmetic, so that they overlap.
    k = tl.load(keys + offset, mask=filled[:, None], other=0.0)
    v = tl.load(values + offset, mask=filled[:, None], other=0.0)
    query = tl.load(q + lane).to(tl.float32) * scale
    score = tl.sum(k.to(tl.float32) * query[None, :], axis=1)
    score = tl.where(filled, score, float("-inf"))
    top = tl.max(score, axis=0)
    weight = tl.exp(score - top)
    return top, tl.sum(weight, axis=0), tl.sum(weight[:, None] * v.to(tl.float32), axis=0)


@jit
def _put(top, total, value, part_top, part_total, part):
    """Combine the splits so far with one more; every caller rounds in the same way."""
    new_top = tl.maximum(top, part_top)
    before = tl.exp(top - new_top)
    weight = tl.exp(part_top - new_top)
    total = tl.fma(total, before, part_total * weight)
    return new_top, total, tl.fma(value, before, part * weight)


# These numbers depend on slots and positions; code for special values of them would gain nothing.
@jit(do_not_specialize=["splits", "last_row"])
def _split_kernel(
    q, keys, values, cache_rows, lengths, shared_lengths, y, parts, tops, sums, heads, splits,
    last_row, row_stride, head_stride, scale, HEAD_DIM: tl.constexpr, SPLIT: tl.constexpr,
    SHARED: tl.constexpr, WHOLE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One split of one head of one row; if WHOLE, all filled splits and their combination."""
    begin(DEPENDENT)
    row_head, split = tl.program_id(0), tl.program_id(1)
    row, head = row_head // heads, row_head % heads
    lane = tl.arange(0, HEAD_DIM)
    length = tl.load(lengths + row)
    shared = tl.load(shared_lengths + row)
    cache_row = tl.load(cache_rows + row)
    start = cache_row * row_stride + head * head_stride
    shared_start = start + (last_row - cache_row) * row_stride
    query = q + row_head * HEAD_DIM
    if WHOLE:
        top, total = float("-inf"), 0.0
        value = tl.zeros((HEAD_DIM,), dtype=tl.float32)
        for first in tl.range(0, length, SPLIT, num_stages=2):
            part_top, part_total, part = _split(
                query, keys, values, start, shared_start, shared, first, length, scale, HEAD_DIM,
                SPLIT, SHARED,
            )  # fmt: skip
            top, total, value = _put(top, total, value, part_top, part_total, part)
        tl.store(y + row_head * HEAD_DIM + lane, (value / total).to(y.dtype.element_ty))
    elif split * SPLIT < length:
        top, total, value = _split(
            query, keys, values, start, shared_start, shared, split * SPLIT, length, scale,
            HEAD_DIM, SPLIT, SHARED,
        )  # fmt: skip
        place = row_head * splits + split
        tl.store(parts + place * HEAD_DIM + lane, value)
        tl.store(tops + place, top)
        tl.store(sums + place, total)


@jit(do_not_specialize=["splits"])
def _combine_kernel(
    parts, tops, sums, lengths, y, heads, splits, HEAD_DIM: tl.constexpr, SPLIT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Combine the filled splits of one head of one row, in order."""
    begin(DEPENDENT)
    row_head = tl.program_id(0)
    length = tl.load(lengths + row_head // heads)
    lane = tl.arange(0, HEAD_DIM)
    top, total = float("-inf"), 0.0
    value = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    place = row_head * splits
    for _ in tl.range(0, length, SPLIT, num_stages=4):
        part = tl.load(parts + place * HEAD_DIM + lane)
        top, total, value = _put(
            top, total, value, tl.load(tops + place), tl.load(sums + place), part
        )
        place += 1
    tl.store(y + row_head * HEAD_DIM + lane, (value / total).to(y.dtype.element_ty))
