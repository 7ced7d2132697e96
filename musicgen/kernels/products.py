"""Products of a few rows with a large matrix, with what stands around them.

The rows are the residual stream, float32 [R, D]; a weight is [N, D], as `nn.Linear` keeps it.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A matrix, or on the CPU one that fbgemm packed as float16 and multiplies in float32.
Weight: TypeAlias = Tensor | torch.ScriptObject


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] @ weight [N, D].T -> [..., N], in the weight's dtype (float32 when packed)."""
    if isinstance(weight, Tensor):
        return F.linear(x.to(weight.dtype), weight)
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, weight)
    return product


def linear_rows(x: Tensor, weight: Weight) -> Tensor:
    """`linear` of x [R, D] such that, on the CPU, no row depends on how many there are.

    fbgemm sums every row alike. The float32 library does not, so there each clip's two rows are
    multiplied on their own. On CUDA (cuBLAS) the independence is only approximate.
    """
    if not isinstance(weight, Tensor) or x.is_cuda:
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
    positions: Tensor,
) -> Tensor:
    """LayerNorm and the joint product with weight [3 D, D]; returns the queries [R, D].

    Keys and values are written into the caches [R, H, S, Dh] at each row's `positions` [R].
    """
    rows, heads, _, head_dim = keys.shape
    q, k, v = norm_linear(x, norm, weight).view(rows, 3, heads, head_dim).unbind(1)
    row = torch.arange(rows, device=x.device)
    keys[row, :, positions] = k
    values[row, :, positions] = v
    return q.reshape(rows, heads * head_dim)


def linear_add(x: Tensor, weight: Weight, residual: Tensor) -> Tensor:
    """Add the product x [R, N] @ weight [D, N].T to the residual [R, D] in place; returns it."""
    return residual.add_(linear_rows(x, weight))
