"""Records the kernels that a function would launch on a GPU, in order, without launching them.

A Triton kernel is recorded where Triton would compile and launch it, with the signature that
Triton would compile. Tensors may be fake (without memory), so neither a GPU nor memory for a
decoder is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from musicgen.decoder.gpus import SHARED_MEMORY
from musicgen.decoder.kernels.compiler import triton

ALLOCATOR_ALIGNMENT = 512  # bytes, of each block of PyTorch's CUDA allocator

# Compute capability -> processors (SMs) of the cards in cards.py; 86 is an A40, 120 an RTX 5090.
PROCESSORS = {75: 40, 80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}


@dataclass(frozen=True)
class Code:
    """The input of Triton's compiler; equal for launches of the same machine code."""

    kernel: Any  # Triton's JITFunction
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    def __str__(self) -> str:
        parts = self.signature, self.constants, self.attributes, self.options
        return f"{self.kernel.__name__} {parts}"


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel or, without `code`, of a PyTorch operation."""

    name: str
    grid: tuple[int, ...]  # numbers of programs; () for PyTorch operations
    arguments: dict[str, Any]  # by name
    code: Code | None = None


@dataclass(frozen=True)
class _Placed:
    """The properties of a tensor that Triton specializes on: its dtype and its address."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Record all launches inside, as on a device of this compute capability (90: Hopper)."""
    launches: list[Launch] = []
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    backend = triton.compiler.make_backend(target)
    bind: Any = triton.runtime.jit.create_function_from_signature

    def run(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **keywords: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        placed = {name: _placed(value) for name, value in given.items()}
        bound, specialization, rest = bind(kernel.signature, kernel.params, backend)(**placed)
        _, signature, constants, attributes = kernel._pack_args(
            backend, keywords, bound, specialization, rest
        )
        arguments = {name: given[name] for name in bound}
        compiled = Code(kernel, signature, constants, attributes, rest)
        launches.append(Launch(kernel.__name__, tuple(grid), arguments, compiled))

    properties = SimpleNamespace(
        shared_memory_per_block_optin=SHARED_MEMORY[capability],
        multi_processor_count=PROCESSORS[capability],
        major=capability // 10,
    )
    with (
        patch.object(triton.runtime.jit.JITFunction, "run", run),
        patch.object(torch.cuda, "get_device_properties", lambda device: properties),
        _Operations(launches),
    ):
        yield launches


def _placed(value: Any) -> Any:
    """Returns an argument for Triton; a tensor becomes its dtype and an aligned address."""
    if not isinstance(value, Tensor):
        return value
    return _Placed(value.dtype, ALLOCATOR_ALIGNMENT + int(value.storage_offset()) * value.itemsize)


class _Operations(TorchDispatchMode):
    """Adds the launches of PyTorch operations: one kernel each, except allocations."""

    WITHOUT_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided")

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in self.WITHOUT_KERNEL:
            named = zip((a.name for a in func._schema.arguments), args, strict=False)
            self.launches.append(Launch(name, (), dict(named) | {"result": result}))
        return result
