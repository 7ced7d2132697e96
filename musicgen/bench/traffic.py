"""What a recorded launch has to move and compute: programs, bytes, operations."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from musicgen.decoder.kernels.recorder import Launch

from .launches import PREFIX
from .work import Work

THREADS = 2048  # that fit a processor, and
PROGRAMS = 16  # of them at most


@dataclass(frozen=True)
class Traffic:
    """One launch; of each of its programs unless it says otherwise."""

    label: str
    programs: int = 0  # 0: as many as fill the processors, together what is said of one
    memory: float = 0.0  # bytes that come from memory
    cached: float = 0.0  # further ones, from the cache that processors share
    flight: float = math.inf  # bytes that are on their way at once
    operations: float = 0.0
    shared: int = 1024  # bytes of shared memory
    threads: int = 128
    waits: int = 2  # one after another, for something out of the shared cache


def traffic(launch: Launch, work: Work, cache_bytes: int = 2) -> Traffic:
    """Raises KeyError for a kernel of Triton's that is not known."""
    if launch.code is None:
        return _operation(launch)
    return KERNELS[launch.name](launch, work, cache_bytes)


def _product(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given, options = launch.arguments, launch.code.options if launch.code else {}
    x, weight = given["x"], given["weight"]
    programs = math.prod(launch.grid)
    stages, tile = options["num_stages"], 2 * given["DEPTH"] * x.itemsize
    rows = min(len(x), given["ROWS"])
    return Traffic(
        label=f"product {weight.shape[0]} x {weight.shape[1]}, {given['THEN']}",
        programs=programs,
        memory=weight.nbytes / programs,
        # Its rows, and the weights that programs with other rows bring from memory.
        cached=rows * x[0].nbytes + given["COLUMNS"] * weight[0].nbytes - weight.nbytes / programs,
        flight=(stages - 1) * tile * (given["COLUMNS"] + rows),
        operations=2 * len(x) * weight.numel() / programs,
        shared=(stages - 1) * tile * (given["COLUMNS"] + given["ROWS"]),
        threads=32 * options["num_warps"],
    )


def _filled(keys: Tensor, work: Work) -> float:
    """Positions of a cache that a step reads, on average over the clip."""
    if work.config.cross_attention and keys.shape[2] == PREFIX:
        return work.cross_length
    return work.prefix_length + (work.steps + 1) / 2


def _split(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given = launch.arguments
    filled = _filled(given["keys"], work)
    splits = math.ceil(filled / given["SPLIT"])
    read = 2 * filled / splits * given["HEAD_DIM"] * cache_bytes
    return Traffic(
        label="attention" if splits > 1 else "cross-attention",
        programs=launch.grid[0] * splits,
        memory=read,
        flight=read,
        waits=3,  # for the length, then the row's place, and to write
    )


def _combine(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given = launch.arguments
    return Traffic(
        label="attention's combination",
        programs=launch.grid[0],
        cached=given["parts"].nbytes / launch.grid[0],
        threads=64,
        waits=1 + 2 * given["GROUPS"],
    )


def _norm(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    x = launch.arguments["x"]
    return Traffic("norm", programs=len(x), cached=3 * x[0].nbytes, waits=3)


def _sample(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given = launch.arguments
    read = given["logits"].nbytes + given["noise"].nbytes
    programs = math.prod(launch.grid)
    # 31 bits are found one after another, each by a sum over the program's threads.
    return Traffic("sampling", programs, memory=read / programs, threads=256, waits=10)


KERNELS: dict[str, Callable[[Launch, Work, int], Traffic]] = {
    "_product_kernel": _product,
    "_split_kernel": _split,
    "_combine_kernel": _combine,
    "_norm_kernel": _norm,
    "_sample_kernel": _sample,
}
# Operations of which only a part of the first tensor is read or written.
PARTIAL = {"embedding", "index", "index_put_"}


def _operation(launch: Launch) -> Traffic:
    """PyTorch's own: reads and writes its tensors once."""
    name, arguments = launch.name, dict(launch.arguments)
    if name == "mm":
        x, weight = (arguments[key] for key in ("self", "mat2"))
        columns, depth = weight.shape[1], weight.shape[0]
        operations = 2.0 * len(x) * weight.numel()
        label = f"product {columns} x {depth}, cuBLAS"
        return Traffic(label, memory=weight.nbytes, operations=operations)
    if name in PARTIAL:
        arguments.pop(next(iter(arguments)))
    if name.endswith("_"):
        arguments.pop("result")
    return Traffic("PyTorch's own operations", cached=sum(_bytes(v) for v in arguments.values()))


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
