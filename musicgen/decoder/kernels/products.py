"""Products of a few rows with a large matrix, with what stands around them.

The rows are the residual stream, float32 [R, D]; a weight is [N, D], as `nn.Linear` keeps it.
Triton's forms are in `fused`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Packed:
    """A matrix [N, D] in the form in which fbgemm, on the CPU, multiplies float32 rows with it."""

    matrix: torch.ScriptObject
    rows_alike: bool  # whether a row's product has nothing to do with the other rows


Weight: TypeAlias = Tensor | Packed


def pack_float16(weight: Tensor) -> Packed:
    """As float16, multiplied in float32: exact where the weights are float16 numbers."""
    packed = torch.ops.quantized.linear_prepack_fp16(_wide(weight), None)
    return Packed(packed, rows_alike=float16_rows_alike())


@functools.cache
def float16_rows_alike() -> bool:
    """Whether fbgemm sums a row of this CPU's alike, however many there are: not with AVX2.

    There two rows on their own, and two that are left over among others, are summed differently.
    """
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 64, generator=random), torch.randn(64, 64, generator=random)
    packed = Packed(torch.ops.quantized.linear_prepack_fp16(weight, None), rows_alike=True)
    pairs = torch.cat([linear(pair, packed) for pair in x.split(2)])
    return all(torch.equal(linear(x[:n], packed), pairs[:n]) for n in range(2, 66, 2))


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

    Where a library sums a row differently among others, each clip's two rows are multiplied on
    their own. On CUDA (cuBLAS) the independence is only approximate.
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
