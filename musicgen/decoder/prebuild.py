"""Compiles the Triton kernels of a server's start for GPUs that are not there.

A server asks for its kernels while it starts: each batch size is checked, then captured. Here the
same functions run on fake tensors, which have shapes but no memory. Triton sees the launches of a
real start, with the target of a GPU that is not there, and stops after it has compiled the kernel.

This module replaces functions of torch and Triton while it runs. It is for a process of its own.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from musicgen.decoder import kernels
from musicgen.decoder.decode_steps import BATCHES, DecodeSteps, slot_columns
from musicgen.decoder.gpus import PROCESSORS, SHARED_MEMORY
from musicgen.decoder.kernels import compiler
from musicgen.decoder.lm import LM
from musicgen.decoder.state import State
from musicgen.decoder.weights import LMConfig, decoder_shapes

CUDA = torch.device("cuda", 0)
ALLOCATOR_ALIGNMENT = 512  # bytes, of each block of PyTorch's CUDA allocator
LAYERS = 2  # the first and any other; all layers launch the same kernels


@dataclass(frozen=True)
class Shapes:
    """The properties of a model that its kernels depend on, besides the GPU."""

    config: LMConfig
    max_length: int  # frames of the longest window
    prefixes: tuple[int, ...]  # the longest condition, for each limit of the text
    shared_prefix: bool


def prebuild(shapes: Shapes, capability: int, folder: Path) -> int:
    """Compile all kernels for a compute capability (90: sm_90) into a Triton cache folder.

    These are the kernels of every number of slots, on the cards in `PROCESSORS`. Returns how many
    there are. Raises RuntimeError if a kernel does not compile.
    """
    target = compiler.triton.backends.compiler.GPUTarget("cuda", capability, 32)
    with _cache(folder), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # ptxas, half of the work, is a process of its own. The threads overlap it.
        with compiler.triton.AsyncCompileMode(pool) as compilation:
            for processors in PROCESSORS[capability]:
                with fake_gpu(target, processors):
                    run_steps(shapes, range(1, BATCHES[-1] + 1))
        return len(compilation.future_kernels)


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Let Triton write to a folder, and only what a server needs: no intermediate languages."""
    knobs = compiler.triton.knobs
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(folder.resolve())
        knobs.compilation.store_binary_only = True
        yield


def run_steps(shapes: Shapes, sizes: Sequence[int]) -> None:
    """Check and run the decode step of these numbers of clips, within `fake_gpu`."""
    config = replace(shapes.config, num_layers=LAYERS)
    state = {
        name: torch.empty(shape, dtype=torch.float16, device=CUDA)
        for name, shape in decoder_shapes(config).items()
    }
    lm = LM.from_audiocraft(config, state, device=CUDA, dtype=torch.float16)
    columns = slot_columns(lm, shapes.max_length)
    chosen: dict[int, kernels.Ops] = {}  # the checks do not depend on the prefix
    for prefix in shapes.prefixes:
        slots = State.empty(lm, BATCHES[-1], columns, prefix, shapes.shared_prefix)
        steps = DecodeSteps(lm, slots, capture=True, eager=True, ops=None)
        steps.chosen = chosen
        for clips in sizes:
            _, step = steps.capture_step(clips)
            if chosen[clips] is kernels.TORCH:
                raise RuntimeError(f"the kernels for {clips} clips cannot be compiled: see above")
            step()


@contextmanager
def fake_gpu(target: Any, processors: int) -> Iterator[None]:
    """Run what is inside as on a GPU with this target and number of processors, without results.

    Kernels are compiled and not launched. A number read from a tensor is 0.
    """
    capability = divmod(target.arch, 10)
    properties = SimpleNamespace(
        multi_processor_count=processors,
        shared_memory_per_block_optin=SHARED_MEMORY[target.arch],
        major=capability[0],
    )
    triton = compiler.triton
    run = triton.runtime.jit.JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=True, **options)

    replaced: tuple[tuple[Any, str, Any], ...] = (
        (triton.runtime.jit.JITFunction, "run", compile_only),
        (triton.runtime.driver, "_active", _Driver(target)),
        (torch.cuda, "get_device_properties", lambda device: properties),
        (torch.cuda, "get_device_capability", lambda device: capability),
        (torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None)),
        (FakeTensor, "data_ptr", _address),
        (FakeTensor, "item", lambda tensor: 0),
    )
    with ExitStack() as stack:
        # First of all, because it imports parts of torch that use what is replaced.
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(torch.no_grad())
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield


class _Driver:
    """A driver of Triton with one GPU, on which nothing can be launched."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        """The key under which a kernel keeps its compiled variants in this process."""
        return self

    def get_current_stream(self, device: Any) -> int:
        return 0


def _address(tensor: Tensor) -> int:
    """An address with the alignment that the tensor would have: Triton's code depends on it."""
    return ALLOCATOR_ALIGNMENT + int(tensor.storage_offset()) * tensor.itemsize
