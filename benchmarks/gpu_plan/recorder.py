"""Records what a function would launch on a GPU, in order, instead of launching it.

A kernel of Triton's is recorded at the place where Triton itself would compile and start it, with
the signature that it would compile. Tensors may be without memory ("fake"), so that no GPU has to
be there, nor room for a decoder.
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

from musicgen.decoder.kernels.compiler import triton

ALLOCATOR_ALIGNMENT = 512  # bytes, of all that PyTorch's allocator for CUDA hands out

# compute capability -> bytes of shared memory that one program may have (CUDA C++ Programming
# Guide, "Technical Specifications per Compute Capability")
SHARED_MEMORY = {
    75: 64 * 1024,
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# Of the cards that plans are made for; of the other capabilities, of an A40 and an RTX 5090.
PROCESSORS = {75: 40, 80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}


@dataclass(frozen=True)
class Code:
    """What Triton would compile; equal for launches that start the same machine code."""

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
    """One start of a kernel; of an operation of PyTorch's if there is no code."""

    name: str
    grid: tuple[int, ...]  # of programs; () where PyTorch decides
    arguments: dict[str, Any]  # by name; tensors as they were given
    code: Code | None = None


@dataclass(frozen=True)
class _Placed:
    """A tensor as Triton looks at it: its dtype and where it begins."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """The launches of what runs inside, as on a device of this compute capability (90: Hopper)."""
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
    """An argument as Triton is to see it; a fake tensor has no address of its own."""
    if not isinstance(value, Tensor):
        return value
    return _Placed(value.dtype, ALLOCATOR_ALIGNMENT + int(value.storage_offset()) * value.itemsize)


class _Operations(TorchDispatchMode):
    """Adds what PyTorch's own operations launch: one kernel each, but for those without any."""

    WITHOUT = ("empty", "new_empty", "empty_like", "empty_strided")

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in self.WITHOUT:
            named = zip((a.name for a in func._schema.arguments), args, strict=False)
            self.launches.append(Launch(name, (), dict(named) | {"result": result}))
        return result
