"""The operations of a decode step, one implementation per backend, all with the same interface."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from musicgen.decoder import sampling
from musicgen.decoder.kernels import attention, cache_folder, compiler, draw, fused, products
from musicgen.decoder.sampling import ROWS_PER_CLIP, SamplingRows

if TYPE_CHECKING:
    from musicgen.decoder.kernels.team import Team

# A matrix [N, D], as the backend stores it: a tensor, or packed.
Weight: TypeAlias = Any
# The residual stream: float32 rows [R, D]. A backend's `linear_add` may return it unfinished, for
# its norm operations to complete; `fused.Pending` is such a form.
Stream: TypeAlias = Any
Inputs: TypeAlias = tuple[Tensor | None, ...]


class Ops(Protocol):
    """The operations of a decode step of R rows."""

    def norm_linear(
        self, x: Stream, norm: nn.LayerNorm, weight: Weight, *, gelu: bool = False
    ) -> Tensor:
        """The product [R, N] of the LayerNorm of x with weight [N, D]; with `gelu`, its GELU."""
        ...

    def norm_qkv(
        self,
        x: Stream,
        norm: nn.LayerNorm,
        weight: Weight,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """The queries [R, D] of the product of the LayerNorm of x with weight [3 D, D].

        The keys and values of row i are written into row `rows[i]` of the caches [any, H, S, Dh],
        at `positions[i]`; both are int64 [R].
        """
        ...

    def linear_add(self, x: Tensor, weight: Weight, residual: Stream) -> Stream:
        """The residual after adding the product of x [R, N] with weight [D, N] in place."""
        ...

    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        lengths: Tensor,
        shared: Tensor | None = None,
    ) -> Tensor:
        """Attention [R, D] of queries q [R, D] over the caches [any, H, S, Dh].

        Query i reads the first `lengths[i]` positions of row `rows[i]`. The first `shared[i]` of
        them equal those of the caches' last row. All three are int64 [R].
        """
        ...

    def replay(
        self, function: Callable[..., Tensor], inputs: Inputs, key: Hashable | None = None
    ) -> Tensor:
        """The result of `function(self, *inputs)`, which is made of the operations above.

        A backend may record the operations and run them together. With a key, it may keep the
        recording, replay it in later calls, and overwrite the result then.
        """
        ...

    def sample(self, logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
        """Codes [B, K] int64 from logits [2B, K, card] and exponential noise [B, K, card]."""
        ...


class Immediate:
    """Operations that compute when they are called; the engine captures them on CUDA."""

    def replay(
        self, function: Callable[..., Tensor], inputs: Inputs, key: Hashable | None = None
    ) -> Tensor:
        """`Ops.replay`."""
        return function(self, *inputs)


class TorchOps(Immediate):
    """PyTorch's operations on any device: the references, and CUDA's without Triton."""

    norm_linear = staticmethod(products.norm_linear)
    norm_qkv = staticmethod(products.norm_qkv)
    linear_add = staticmethod(products.linear_add)
    attention = staticmethod(attention.attention)
    sample = staticmethod(sampling.sample)


class TritonOps(Immediate):
    """Triton's kernels on CUDA: weights and caches are read once, and rows are independent."""

    norm_linear = staticmethod(fused.norm_linear)
    norm_qkv = staticmethod(fused.norm_qkv)
    linear_add = staticmethod(fused.linear_add)
    attention = staticmethod(attention.attention_triton)
    sample = staticmethod(draw.sample_triton)


class TritonAttentionOps(TorchOps):
    """Triton's attention and sampling with PyTorch's products, for GPUs before Ampere.

    Triton does not use the tensor cores of those GPUs, and its products would spill registers. The
    rows of cuBLAS's products are only approximately independent of each other.
    """

    attention = staticmethod(attention.attention_triton)
    sample = staticmethod(draw.sample_triton)


TORCH: Ops = TorchOps()
TRITON: Ops = TritonOps()
TRITON_ATTENTION: Ops = TritonAttentionOps()

logger = logging.getLogger(__name__)

TENSOR_CORES = (8, 0)  # the first compute capability whose tensor cores Triton uses


def triton_ops(capability: tuple[int, int]) -> Ops:
    """The Triton kernels that suit a GPU of this compute capability."""
    return TRITON if capability >= TENSOR_CORES else TRITON_ATTENTION


def cpu_ops(team: Team) -> Ops:
    """The CPU's operations, run by these threads; rows are independent of each other, to the bit.

    Each call returns a new object, which keeps the programs that it has recorded.
    """
    # numba is imported only where it is used; a GPU does not need it.
    from musicgen.decoder.kernels.recorder import CpuOps

    return CpuOps(team)


def cpu_team(threads: int) -> Team:
    """Threads to run the CPU's operations."""
    from musicgen.decoder.kernels.team import Team

    return Team(threads)


def pack(matrix: Tensor, team: Team) -> Weight:
    """A matrix [N, D] as the CPU's operations need it, without loss."""
    from musicgen.decoder.kernels.packed import pack

    return pack(matrix, team)


def quantize(matrix: Tensor, team: Team) -> Weight:
    """A matrix [N, D] as the CPU's operations need it, rounded to int8."""
    from musicgen.decoder.kernels.packed import quantize

    return quantize(matrix, team)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder that the kernels depend on."""

    dim: int
    ffn_dim: int
    head_dim: int
    outputs: int  # n_q * card


def choose(device: torch.device, dtype: torch.dtype, shape: Shape, rows: int) -> Ops:
    """The operations for a decoder of this shape and dtype, for a batch of `rows` rows.

    On CUDA these are the Triton kernels that suit the GPU, if they build here and agree with
    PyTorch; otherwise PyTorch's operations, and an error is logged. Float32 always uses PyTorch's
    operations: it serves comparisons, not speed. So does MUSICGEN_KERNELS=torch, the operator's way
    out if a kernel crashes or hangs. `cpu_ops` are for packed weights.
    """
    torch_only = os.environ.get("MUSICGEN_KERNELS") == "torch"
    if device.type == "cpu" or dtype == torch.float32 or torch_only:
        return TORCH
    try:
        cache_folder.ensure_usable()
        ops = triton_ops(torch.cuda.get_device_capability(device))
        check(ops, TORCH, device, dtype, shape, rows)
    except Exception as exc:  # a compiler or driver may raise any exception
        reason = "Triton is not installed" if compiler.triton is None else f"{exc!r}"
        _log_once(
            logging.ERROR,
            f"Triton kernels cannot be used; decoding with PyTorch operations, which is several "
            f"times slower: {reason}",
        )
        return TORCH
    if ops is not TRITON:
        _log_once(
            logging.WARNING,
            "Triton's matrix products need compute capability 8.0 or higher; using cuBLAS instead "
            "(slower)",
        )
    return ops


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


def describe(ops: Ops) -> str:
    """A name of the operations for logs and results."""
    names = (
        (TORCH, "PyTorch operations"),
        (TRITON, "Triton kernels"),
        (TRITON_ATTENTION, "Triton attention and sampling with cuBLAS products"),
    )
    return next((name for known, name in names if ops is known), "CPU operations")


def check(
    ops: Ops, reference: Ops, device: torch.device, dtype: torch.dtype, shape: Shape, rows: int
) -> None:
    """Compare every operation with its reference on random rows.

    Raises ValueError for a shape that the kernels' tiles do not divide, and ArithmeticError if
    results differ by more than rounding to `dtype` explains.
    """
    check_sample(ops, reference, device, dtype, rows)
    ours, theirs = (trials(backend, device, dtype, shape, rows) for backend in (ops, reference))
    for name, run in ours.items():
        error, allowed = difference(run(), theirs[name](), dtype)
        if not error <= allowed:
            raise ArithmeticError(f"{name} is off by {error:.3g}")


def difference(found: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference, and the largest that rounding to `dtype` explains."""
    error = (found.float() - expected.float()).abs().max().item()
    return error, 16 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())


def trials(
    ops: Ops, device: torch.device, dtype: torch.dtype, shape: Shape, rows: int
) -> dict[str, Callable[[], Tensor]]:
    """Calls of every operation but `sample`, always on the same random rows.

    Raises ValueError for a shape that the kernels' tiles do not divide.
    """
    dim, ffn_dim, head_dim = shape.dim, shape.ffn_dim, shape.head_dim
    if dim % 64 or ffn_dim % 64 or shape.outputs % 64 or head_dim & (head_dim - 1):
        raise ValueError(f"the kernels do not support {shape}")
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    def weight(width: int, depth: int) -> Tensor:
        return normal(width, depth) / math.sqrt(depth)

    capacity = 300  # not a multiple of the split size
    norm = nn.LayerNorm(dim, device=device).requires_grad_(False)
    for affine in (norm.weight, norm.bias):
        affine.add_(normal(dim, dtype=torch.float32), alpha=0.1)
    x = normal(rows, dim, dtype=torch.float32)
    qkv, up, down = weight(3 * dim, dim), weight(ffn_dim, dim), weight(dim, ffn_dim)
    keys, values = normal(2, rows + 1, dim // head_dim, capacity, head_dim).unbind()
    hidden, query = normal(rows, ffn_dim), normal(rows, dim)
    positions = (torch.arange(rows, device=device) // ROWS_PER_CLIP * 37 + capacity - 40) % capacity
    order = torch.arange(rows, device=device).flip(0)  # the row in the cache of each row
    shared = positions // 2 * (torch.arange(rows, device=device) % 2)
    for cache in (keys, values):  # every other row begins like the last row
        alike = torch.arange(capacity, device=device) < shared[:, None]
        cache[order] = torch.where(alike[:, None, :, None], cache[-1], cache[order])

    def qkv_trial() -> Tensor:
        k, v = keys.clone(), values.clone()
        q = ops.norm_qkv(x, norm, qkv, k, v, order, positions)
        return torch.cat([part.flatten() for part in (q, k, v)])

    def add_trial() -> Tensor:
        residual = x.clone()
        # Its norm completes the residual.
        ops.norm_linear(ops.linear_add(hidden, down, residual), norm, up)
        return residual

    lengths = positions + 1
    return {
        "norm_qkv": qkv_trial,
        "norm_linear": lambda: ops.norm_linear(x, norm, up),
        "norm_linear with GELU": lambda: ops.norm_linear(x, norm, up, gelu=True),
        "linear_add": add_trial,
        "norm_linear after linear_add": lambda: ops.norm_linear(
            ops.linear_add(hidden, down, x.clone()), norm, up
        ),
        "attention": lambda: ops.attention(query, keys, values, order, lengths),
        "attention with a shared prefix": lambda: ops.attention(
            query, keys, values, order, lengths, shared
        ),
    }


def check_sample(
    ops: Ops, reference: Ops, device: torch.device, dtype: torch.dtype, rows: int
) -> None:
    random = torch.Generator(device).manual_seed(0)
    clips = rows // ROWS_PER_CLIP
    settings = SamplingRows.empty(clips, device)
    for clip in range(clips):
        settings.set(clip, sampling.Sampling(top_k=50), 2048)
    logits = torch.randn(rows, 4, 2048, generator=random, device=device).to(dtype)
    noise = torch.empty(clips, 4, 2048, device=device).exponential_(generator=random)
    ours, theirs = (backend.sample(logits, noise, settings) for backend in (ops, reference))
    # The last bit of a probability decides a few draws, so not all codes must be equal.
    if (ours != theirs).float().mean().item() > 0.25:
        raise ArithmeticError("sample draws other codes")
