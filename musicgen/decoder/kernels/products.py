"""Products of a few rows with a large matrix, together with the operations around them.

The rows are the residual stream, float32 [R, D]; a weight is [N, D], as in `nn.Linear`. These are
the PyTorch references; the Triton kernels are in `fused`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen.decoder.sampling import ROWS_PER_CLIP


@dataclass(frozen=True)
class Packed:
    """A matrix [N, D], packed for fbgemm's products with float32 rows on the CPU."""

    matrix: torch.ScriptObject
    rows_alike: bool  # whether a row's product is independent of the other rows


Weight: TypeAlias = Tensor | Packed


def pack_float16(weight: Tensor) -> Packed:
    """Pack as float16; products are in float32, so they are exact if the weights fit float16."""
    packed = torch.ops.quantized.linear_prepack_fp16(_wide(weight), None)
    return Packed(packed, rows_alike=float16_rows_alike())


@functools.cache
def float16_rows_alike() -> bool:
    """Whether fbgemm sums a row in the same order for any number of rows on this CPU.

    With AVX2 it does not: it sums two rows alone, and the last two of more, in another order.
    """
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 64, generator=random), torch.randn(64, 64, generator=random)
    packed = Packed(torch.ops.quantized.linear_prepack_fp16(weight, None), rows_alike=True)
    pairs = torch.cat([linear(pair, packed) for pair in x.split(ROWS_PER_CLIP)])
    return all(torch.equal(linear(x[:n], packed), pairs[:n]) for n in range(2, 66, 2))


def _wide(weight: Tensor) -> Tensor:
    return weight.to("cpu", torch.float32).contiguous()


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] @ weight [N, D].T as [..., N], in the weight's dtype (float32 if packed)."""
    if isinstance(weight, Tensor):
        return F.linear(x.to(weight.dtype), weight)
    product: Tensor = torch.ops.quantized.linear_dynamic(x, weight.matrix, True)
    return product


def linear_rows(x: Tensor, weight: Weight) -> Tensor:
    """`linear` of x [R, D]; on the CPU, no row depends on the number of rows.

    If a library's sums depend on the number of rows, each clip's rows are multiplied separately. On
    CUDA (cuBLAS) the independence is only approximate.
    """
    if x.is_cuda or (isinstance(weight, Packed) and weight.rows_alike):
        return linear(x, weight)
    return torch.cat([linear(pair, weight) for pair in x.split(ROWS_PER_CLIP)])


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm in float32, for products of any dtype."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Weight, *, gelu: bool = False) -> Tensor:
    """The product [R, N] of the LayerNorm of x with weight [N, D]; with `gelu`, its exact GELU."""
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
    """The queries [R, D] of the product of the LayerNorm of x [R, D] with weight [3 D, D].

    The keys and values of row i are written into row `rows[i]` of the caches [any, H, S, Dh], at
    `positions[i]`.
    """
    _, heads, _, head_dim = keys.shape
    q, k, v = norm_linear(x, norm, weight).view(len(x), 3, heads, head_dim).unbind(1)
    keys[rows, :, positions] = k
    values[rows, :, positions] = v
    return q.reshape(len(x), heads * head_dim)


def linear_add(x: Tensor, weight: Weight, residual: Tensor) -> Tensor:
    """The residual [R, D], after adding the product of x [R, N] with weight [D, N] in place."""
    return residual.add_(linear_rows(x, weight))
