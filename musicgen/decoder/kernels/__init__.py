"""The operations of a decode step, one table per backend, all with the same signatures."""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from musicgen.decoder import sampling
from musicgen.decoder.kernels import attention, compiler, draw, fused, products


@dataclass(frozen=True)
class Ops:
    """What a decode step is made of; the contracts are the docstrings of the PyTorch references.

    Rows that `linear_add` returns are for a norm, and complete once that has seen them.
    """

    norm_linear: Callable[..., Tensor]
    norm_qkv: Callable[..., Tensor]
    linear_add: Callable[..., Any]
    attention: Callable[..., Tensor]
    sample: Callable[..., Tensor]


# Everything at once on any device: what CUDA uses where there is no Triton.
TORCH = Ops(
    norm_linear=products.norm_linear,
    norm_qkv=products.norm_qkv,
    linear_add=products.linear_add,
    attention=attention.attention,
    sample=sampling.sample,
)

# On CUDA: reads weights and caches once, whatever the number of rows; each row on its own.
TRITON = Ops(
    norm_linear=fused.norm_linear,
    norm_qkv=fused.norm_qkv,
    linear_add=fused.linear_add,
    attention=attention.attention_triton,
    sample=draw.sample_triton,
)

# Triton makes nothing of the tensor cores before Ampere's, and its products would spill: on those
# the products are cuBLAS's, whose rows are only approximately independent of each other.
TENSOR_CORES = (8, 0)  # the compute capability from which on
TRITON_BUT_PRODUCTS = replace(
    TRITON,
    norm_linear=products.norm_linear,
    norm_qkv=products.norm_qkv,
    linear_add=products.linear_add,
)


def triton_ops(capability: tuple[int, int]) -> Ops:
    """What Triton is used for on a GPU of this compute capability."""
    return TRITON if capability >= TENSOR_CORES else TRITON_BUT_PRODUCTS


@functools.cache
def cpu_ops() -> Ops:
    """On the CPU: nothing depends on the other rows of the batch, bit for bit."""
    from musicgen.decoder.kernels import compiled  # and numba, which a GPU has no use for

    return Ops(
        norm_linear=products.norm_linear,
        norm_qkv=products.norm_qkv,
        linear_add=products.linear_add,
        attention=compiled.attention_numba,
        sample=sampling.sample_each,
    )


@dataclass(frozen=True)
class Shape:
    """What kernels must know of a decoder."""

    dim: int
    ffn_dim: int
    head_dim: int
    outputs: int  # n_q * card


def choose(device: torch.device, dtype: torch.dtype, shape: Shape, rows: int) -> Ops:
    """The operations for a decoder of this shape and dtype, for so many rows.

    On CUDA the Triton kernels that suit the GPU, if they build here and agree with PyTorch's;
    otherwise, after a warning, PyTorch's. Float32 is always PyTorch's: it is there for comparisons,
    not for speed.
    """
    if device.type == "cpu":
        return cpu_ops()
    if dtype == torch.float32:
        return TORCH
    try:
        ops = triton_ops(torch.cuda.get_device_capability(device))
        check(ops, TORCH, device, dtype, shape, rows)
    except Exception as exc:  # whatever a compiler or driver may raise: there is a way without
        reason = "Triton is not installed" if compiler.triton is None else f"{exc!r}"
        warnings.warn(f"decoding without Triton kernels, slower: {reason}", stacklevel=2)
        return TORCH
    if ops is not TRITON:
        warnings.warn("decoding without Triton's products, slower: this GPU is old", stacklevel=2)
    return ops


def check(
    ops: Ops, reference: Ops, device: torch.device, dtype: torch.dtype, shape: Shape, rows: int
) -> None:
    """Run every operation on random rows beside its reference.

    Raises ValueError for a shape that the kernels' tiles do not divide, and ArithmeticError where
    the results differ by more than rounding to `dtype` explains.
    """
    dim, ffn_dim, head_dim = shape.dim, shape.ffn_dim, shape.head_dim
    if dim % 64 or ffn_dim % 64 or shape.outputs % 64 or head_dim & (head_dim - 1):
        raise ValueError(f"no kernels for {shape}")
    _check_sample(ops, reference, device, dtype, rows)
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    def weight(width: int, depth: int) -> Tensor:
        return normal(width, depth) / math.sqrt(depth)

    capacity = 300  # not a whole number of splits
    norm = nn.LayerNorm(dim, device=device).requires_grad_(False)
    for affine in (norm.weight, norm.bias):
        affine.add_(normal(dim, dtype=torch.float32), alpha=0.1)
    x = normal(rows, dim, dtype=torch.float32)
    qkv, up, down = weight(3 * dim, dim), weight(ffn_dim, dim), weight(dim, ffn_dim)
    keys, values = normal(2, rows + 1, dim // head_dim, capacity, head_dim).unbind()
    hidden, query = normal(rows, ffn_dim), normal(rows, dim)
    positions = (torch.arange(rows, device=device) // 2 * 37 + capacity - 40) % capacity
    order = torch.arange(rows, device=device).flip(0)  # of the rows in the cache
    shared = positions // 2 * (torch.arange(rows, device=device) % 2)
    for cache in (keys, values):  # every other row begins as the last one does
        alike = torch.arange(capacity, device=device) < shared[:, None]
        cache[order] = torch.where(alike[:, None, :, None], cache[-1], cache[order])

    def run(ops: Ops) -> dict[str, Tensor]:
        k, v = keys.clone(), values.clone()
        q = ops.norm_qkv(x, norm, qkv, k, v, order, positions)
        residual = x.clone()
        added = ops.norm_linear(ops.linear_add(hidden, down, residual), norm, up)
        return {
            "norm_qkv": torch.cat([part.flatten() for part in (q, k, v)]),
            "norm_linear": ops.norm_linear(x, norm, up),
            "norm_linear with GELU": ops.norm_linear(x, norm, up, gelu=True),
            "linear_add": residual,
            "norm_linear after linear_add": added,
            "attention": ops.attention(query, keys, values, order, positions + 1),
            "attention, some shared": ops.attention(
                query, keys, values, order, positions + 1, shared
            ),
        }

    results = run(ops)
    for name, expected in run(reference).items():
        error = (results[name].float() - expected.float()).abs().max().item()
        if not error <= 16 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item()):
            raise ArithmeticError(f"{name} is off by {error:.3g}")


def _check_sample(
    ops: Ops, reference: Ops, device: torch.device, dtype: torch.dtype, rows: int
) -> None:
    random = torch.Generator(device).manual_seed(0)
    settings = sampling.SamplingRows.empty(rows // 2, device)
    for clip in range(rows // 2):
        settings.set(clip, sampling.Sampling(top_k=50), 2048)
    logits = torch.randn(rows, 4, 2048, generator=random, device=device).to(dtype)
    noise = torch.empty(rows // 2, 4, 2048, device=device).exponential_(generator=random)
    ours, theirs = (table.sample(logits, noise, settings) for table in (ops, reference))
    # A draw may turn on the last bit of a probability: not many do.
    if (ours != theirs).float().mean().item() > 0.25:
        raise ArithmeticError("sample draws other codes")
