"""Attention of one query per row over the filled part of that row's cache.

The Triton form cuts the cache into splits of a fixed size, so that even the few heads of one clip
fill the GPU ("Flash-Decoding", Dao et al. 2023). The cut depends on nothing but the position, and
the splits are put together in a fixed order: a row's result has nothing to do with its neighbours.
"""

# Kernels are Triton's language, not Python's, and have no types.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiler import jit, tl, triton

SPLIT = 128  # positions that one program reads
GROUP = 16  # splits that are put together at a time


def attention(q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Queries [R, H * Dh] and caches [any, H, S, Dh] -> [R, H * Dh].

    Query i reads the cache's row `rows[i]`, of which `lengths[i]` positions are filled. This form
    reads all of it, from a copy, and masks the rest out.
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
    q: Tensor, keys: Tensor, values: Tensor, cache_rows: Tensor, lengths: Tensor
) -> Tensor:
    """`attention` that reads only what is filled, in float32."""
    rows, (_, heads, capacity, head_dim) = len(q), keys.shape
    splits = triton.cdiv(capacity, SPLIT)
    y = torch.empty_like(q)
    parts = q.new_empty((rows * heads, splits, head_dim), dtype=torch.float32)
    tops, sums = q.new_empty((2, rows * heads, splits), dtype=torch.float32)
    row_stride, head_stride = keys.stride()[:2]
    _split_kernel[(rows * heads, splits)](
        q, keys, values, cache_rows, lengths, y, parts, tops, sums, heads, splits, row_stride,
        head_stride, head_dim**-0.5, HEAD_DIM=head_dim, SPLIT=SPLIT, WHOLE=splits == 1, num_warps=4,
    )  # fmt: skip
    if splits == 1:
        return y
    _combine_kernel[(rows * heads,)](
        parts, tops, sums, lengths, y, heads, splits, HEAD_DIM=head_dim, SPLIT=SPLIT,
        GROUPS=triton.cdiv(splits, GROUP), GROUP=GROUP, num_warps=2,
    )  # fmt: skip
    return y


@jit
def _split_kernel(
    q, keys, values, cache_rows, lengths, y, parts, tops, sums, heads, splits, row_stride,
    head_stride, scale, HEAD_DIM: tl.constexpr, SPLIT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One split of one head of one row: its softmax's maximum, sum, and weighted values.

    WHOLE: there is but one split, so that is the result.
    """
    row_head, split = tl.program_id(0), tl.program_id(1)
    row, head = row_head // heads, row_head % heads
    length = tl.load(lengths + row)
    if split * SPLIT < length:
        lane = tl.arange(0, HEAD_DIM)
        position = split * SPLIT + tl.arange(0, SPLIT)
        filled = position < length
        head_start = tl.load(cache_rows + row) * row_stride + head * head_stride
        offset = head_start + position[:, None] * HEAD_DIM + lane[None, :]
        # Both loads stand before the arithmetic, so that both are on their way at once.
        k = tl.load(keys + offset, mask=filled[:, None], other=0.0)
        v = tl.load(values + offset, mask=filled[:, None], other=0.0)
        query = tl.load(q + row_head * HEAD_DIM + lane).to(tl.float32) * scale
        score = tl.sum(k.to(tl.float32) * query[None, :], axis=1)
        score = tl.where(filled, score, float("-inf"))
        top = tl.max(score, axis=0)
        weight = tl.exp(score - top)
        part = tl.sum(weight[:, None] * v.to(tl.float32), axis=0)
        total = tl.sum(weight, axis=0)
        if WHOLE:
            tl.store(y + row_head * HEAD_DIM + lane, (part / total).to(y.dtype.element_ty))
        else:
            place = row_head * splits + split
            tl.store(parts + place * HEAD_DIM + lane, part)
            tl.store(tops + place, top)
            tl.store(sums + place, total)


@jit
def _combine_kernel(
    parts, tops, sums, lengths, y, heads, splits,
    HEAD_DIM: tl.constexpr, SPLIT: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One head of one row: the splits' results, each scaled to the common maximum.

    A group that is not used changes nothing, bit for bit: the capacity does not matter either.
    """
    row_head = tl.program_id(0)
    used = tl.cdiv(tl.load(lengths + row_head // heads), SPLIT)
    lane = tl.arange(0, HEAD_DIM)
    top = float("-inf")
    total = 0.0
    value = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    for group in range(GROUPS):
        split = group * GROUP + tl.arange(0, GROUP)
        there = split < used
        place = row_head * splits + split
        part_top = tl.load(tops + place, mask=there, other=float("-inf"))
        part_sum = tl.load(sums + place, mask=there, other=0.0)
        offset = place[:, None] * HEAD_DIM + lane[None, :]
        part = tl.load(parts + offset, mask=there[:, None], other=0.0)
        new_top = tl.maximum(top, tl.max(part_top, axis=0))
        weight = tl.exp(part_top - new_top)
        before = tl.exp(top - new_top)
        total = total * before + tl.sum(weight * part_sum, axis=0)
        value = value * before + tl.sum(weight[:, None] * part, axis=0)
        top = new_top
    tl.store(y + row_head * HEAD_DIM + lane, (value / total).to(y.dtype.element_ty))
