"""Products of a few rows with a large matrix, with what stands around them.

The rows are the residual stream, float32 [R, D]; a weight is [N, D], as `nn.Linear` keeps it.

The Triton form reads every weight once and spends its time on that: a program multiplies all the
rows, or a part of many, with a few of the matrix's, several tiles ahead, and what follows the
product happens before anything is written. An element is a sum over D in the same steps of the same
instruction, whatever the number of rows, so a row's result has nothing to do with its neighbours.
"""

# Kernels are Triton's language, not Python's, and have no types.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compiler import jit, tl, triton


@dataclass(frozen=True)
class Packed:
    """A matrix [N, D] in the form in which fbgemm, on the CPU, multiplies float32 rows with it."""

    matrix: torch.ScriptObject
    rows_alike: bool  # whether a row's product has nothing to do with the other rows


Weight: TypeAlias = Tensor | Packed


def pack_float16(weight: Tensor) -> Packed:
    """As float16, multiplied in float32: exact where the weights are float16 numbers."""
    return Packed(torch.ops.quantized.linear_prepack_fp16(_wide(weight), None), rows_alike=True)


def pack_int8(weight: Tensor) -> Packed:
    """As int8 with a scale for each of the N; rows are rounded to 7 bits, which fit any CPU."""
    weight = _wide(weight)
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-9).double()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    # The rows of one product share their scale.
    return Packed(torch.ops.quantized.linear_prepack(quantized, None), rows_alike=False)


def _wide(weight: Tensor) -> Tensor:
    return weight.to("cpu", torch.float32).contiguous()


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] @ weight [N, D].T -> [..., N], in the weight's dtype (float32 when packed)."""
    if isinstance(weight, Tensor):
        return F.linear(x.to(weight.dtype), weight)
    product: Tensor = torch.ops.quantized.linear_dynamic(x, weight.matrix, True)
    return product


def linear_rows(x: Tensor, weight: Weight) -> Tensor:
    """`linear` of x [R, D] such that, on the CPU, no row depends on how many there are.

    fbgemm sums every row alike. The float32 library does not, so there each clip's two rows are
    multiplied on their own. On CUDA (cuBLAS) the independence is only approximate.
    """
    if x.is_cuda or (isinstance(weight, Packed) and weight.rows_alike):
        return linear(x, weight)
    return torch.cat([linear(pair, weight) for pair in x.split(2)])


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm in float32, whatever is computed from it."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Weight, *, gelu: bool = False) -> Tensor:
    """LayerNorm, product and, for the first half of a feed-forward, exact GELU: -> [R, N]."""
    y = linear_rows(normed(x, norm), weight)
    return F.gelu(y) if gelu else y


def norm_qkv(
    x: Tensor,
    norm: nn.LayerNorm,
    weight: Weight,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """LayerNorm and the joint product with weight [3 D, D]; returns the queries [R, D].

    Keys and values are written into the caches [any, H, S, Dh], of row i of x into row `rows[i]`
    at `positions[i]`.
    """
    _, heads, _, head_dim = keys.shape
    q, k, v = norm_linear(x, norm, weight).view(len(x), 3, heads, head_dim).unbind(1)
    keys[rows, :, positions] = k
    values[rows, :, positions] = v
    return q.reshape(len(x), heads * head_dim)


def linear_add(x: Tensor, weight: Weight, residual: Tensor) -> Tensor:
    """Add the product x [R, N] @ weight [D, N].T to the residual [R, D] in place; returns it."""
    return residual.add_(linear_rows(x, weight))


def norm_linear_triton(
    x: Tensor, norm: nn.LayerNorm, weight: Tensor, *, gelu: bool = False
) -> Tensor:
    """`norm_linear`."""
    y = torch.empty(len(x), len(weight), dtype=weight.dtype, device=x.device)
    _product(_normed_triton(x, norm, weight.dtype), weight, y, "gelu" if gelu else "store")
    return y


def norm_qkv_triton(
    x: Tensor,
    norm: nn.LayerNorm,
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """`norm_qkv`."""
    q = torch.empty_like(x, dtype=weight.dtype)
    _product(
        _normed_triton(x, norm, weight.dtype), weight, q, "append", keys, values, rows, positions
    )
    return q


def linear_add_triton(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """`linear_add`."""
    _product(x, weight, residual, "add")
    return residual


def _normed_triton(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """A launch of its own: in the product, every program would have to repeat it."""
    y = torch.empty_like(x, dtype=dtype)
    rows, dim = x.shape
    _norm_kernel[(rows,)](
        x, norm.weight, norm.bias, y, dim, norm.eps, BLOCK=triton.next_power_of_2(dim), num_warps=4
    )
    return y


def _product(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    then: str,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    cache_rows: Tensor | None = None,
    positions: Tensor | None = None,
) -> None:
    """Product of x [R, D] and weight [N, D]; `then` says what becomes of it: see the kernel."""
    rows, depth = x.shape
    width = len(weight)
    tile_rows, tile_columns = _tile(rows, width, _processors(x.device))
    tile_depth = 128 if depth % 256 == 0 else 32
    tile_bytes = 2 * tile_depth * (tile_rows + tile_columns) * x.element_size()
    head_dim, row_stride, head_stride = 1, 0, 0
    if keys is not None:
        head_dim, (row_stride, head_stride) = keys.shape[3], keys.stride()[:2]
    # Who shares weights runs side by side, so that they come from memory once.
    _product_kernel[(triton.cdiv(rows, tile_rows), width // tile_columns)](
        x, weight, y, keys, values, cache_rows, positions, rows, width, row_stride, head_stride,
        THEN=then, HEAD_DIM=head_dim, D=depth,
        ROWS=tile_rows, COLUMNS=tile_columns, DEPTH=tile_depth,
        num_warps=2 if tile_rows <= 16 else 4, num_stages=_stages(tile_bytes, x.device),
    )  # fmt: skip


def _tile(rows: int, width: int, processors: int) -> tuple[int, int]:
    """Rows and columns of a program.

    Few rows: nearly all that is read is weights, and narrow matrices are cut finer, so that every
    processor gets a part. Many: every program reads its rows again, so rows and columns are cut
    such that the processor that has most to read has least. No tile is wider than 32 columns: from
    64 on some GPUs would multiply by another instruction, whose sums may differ.
    """
    if rows <= 16:
        return max(8, triton.next_power_of_2(rows)), 32 if width >= 4096 else 16

    def read(tile: tuple[int, int]) -> tuple[int, int]:
        tile_rows, columns = tile
        programs = triton.cdiv(rows, tile_rows) * (width // columns)
        return triton.cdiv(programs, processors) * (tile_rows + columns), programs

    heights = [height for height in (16, 32, 64) if height < 2 * rows]
    return min(itertools.product(heights, (16, 32)), key=read)


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 128  # so that the interpreter cuts as a GPU would
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _stages(tile_bytes: int, device: torch.device) -> int:
    """Tiles on their way at once, plus one: what keeps the memory busy.

    As many as there is room for if two programs share a processor. Results are the same.
    """
    if device.type == "cpu":
        return 1
    properties = torch.cuda.get_device_properties(device)
    room: int = getattr(properties, "shared_memory_per_block_optin", 48 * 1024)
    return 1 + max(2, min(7, room // (2 * tile_bytes)))


@jit
def _norm_kernel(x, weight, bias, y, dim, eps, BLOCK: tl.constexpr):
    """LayerNorm of one row in float32."""
    column = tl.arange(0, BLOCK)
    inside = column < dim
    start = tl.program_id(0) * dim
    value = tl.load(x + start + column, mask=inside, other=0.0)
    centred = tl.where(inside, value - tl.sum(value, axis=0) / dim, 0.0)
    variance = tl.sum(centred * centred, axis=0) / dim
    scale = tl.load(weight + column, mask=inside, other=0.0) / tl.sqrt(variance + eps)
    shift = tl.load(bias + column, mask=inside, other=0.0)
    normed = centred * scale + shift
    tl.store(y + start + column, normed.to(y.dtype.element_ty), mask=inside)


@jit
def _product_kernel(
    x, weight, y, keys, values, cache_rows, positions, rows, width, row_stride, head_stride,
    THEN: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows, COLUMNS columns of x [rows, D] @ weight [width, D].T, summed in float32.

    THEN: "store" it in y, its "gelu", or "add" it to what is there; "append" stores a first third
    of the columns in y and the other two in the caches, at each row's row and position there.
    """
    # The weights are the first factor, whose tiles may not be smaller than 16: of rows 8 will do.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    step = tl.arange(0, DEPTH)
    there = (row < rows)[:, None]
    x_tile = x + row[:, None] * D + step[None, :]
    weight_tile = weight + column[:, None] * D + step[None, :]
    # Two sums, over even and odd tiles: each waits only for itself.
    even = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    odd = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    for start in range(0, D, 2 * DEPTH):
        even_weight = tl.load(weight_tile + start)
        odd_weight = tl.load(weight_tile + start + DEPTH)
        even_x = tl.load(x_tile + start, mask=there, other=0.0)
        odd_x = tl.load(x_tile + start + DEPTH, mask=there, other=0.0)
        even = tl.dot(even_weight, tl.trans(even_x), even)
        odd = tl.dot(odd_weight, tl.trans(odd_x), odd)
    total = tl.trans(even + odd)

    if THEN == "append":
        dim = width // 3
        part = first // dim
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
        if THEN == "add":
            total += tl.load(out, mask=there, other=0.0)
        tl.store(out, total.to(y.dtype.element_ty), mask=there)
