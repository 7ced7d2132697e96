"""Products of a few rows with a large matrix, together with the operations around them.

The rows are the residual stream, float32 [R, D]; a weight is [N, D], as in `nn.Linear`. These are
the PyTorch references; the Triton kernels are in `fused`.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen.decoder.sampling import ROWS_PER_CLIP


class PackedMatrix(Protocol):
    """A matrix [N, D] in another layout, `packed.Packed` on the CPU."""

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        ...

    def dense(self) -> Tensor:
        """The matrix [N, D] in float32."""
        ...


Weight: TypeAlias = Tensor | PackedMatrix


def is_float16(matrix: Tensor) -> bool:
    """Whether float16 represents every number of a matrix exactly."""
    return matrix.dtype == torch.float16 or torch.equal(matrix.half().to(matrix.dtype), matrix)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] @ weight [N, D].T as [..., N], in the weight's dtype (float32 if packed)."""
    dense = weight if isinstance(weight, Tensor) else weight.dense()
    return F.linear(x.to(dense.dtype), dense)


def linear_rows(x: Tensor, weight: Weight) -> Tensor:
    """`linear` of x [R, D]; on the CPU, no clip's rows depend on the other rows.

    There each clip's rows are multiplied separately, because the sums of a library may depend on
    the number of rows. On CUDA (cuBLAS) the independence is only approximate.
    """
    if x.is_cuda:
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
