"""What a recorded launch has to move and compute: programs, bytes, operations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_plan.launches import PREFIX
from benchmarks.gpu_plan.recorder import Launch
from benchmarks.work import Work


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
    dependent: bool = False  # begins before the launch that it depends on has ended
    fetches: bool = False  # asks for what it reads from memory when it begins


def traffic(launch: Launch, work: Work, cache_bytes: int = 2) -> Traffic:
    """Raises KeyError for a kernel of Triton's that is not known."""
    if launch.code is None:
        return _operation(launch)
    moved = KERNELS[launch.name](launch, work, cache_bytes)
    return replace(moved, dependent=launch.arguments["DEPENDENT"])


def _product(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given, options = launch.arguments, launch.code.options if launch.code else {}
    x, weight, normed, parts = (given[name] for name in ("x", "weight", "NORM", "PARTS"))
    programs = math.prod(launch.grid)
    columns, rows = given["COLUMNS"] * given["STRIPS"], min(len(x), given["ROWS"])
    own = given["CHUNKS"] // parts
    step = own * given["DEPTH"]  # of the depth, at a time
    own_weight = columns * weight[0].nbytes / parts
    # A norm reads its rows, then them again with its scale and shift at every step.
    further = 2 * x.nbytes + 2 * x[0].nbytes if normed else rows * x[0].nbytes / parts
    if parts > 1:
        further += rows * columns * 4  # written, for the norm that follows
    flight = (options["num_stages"] - 1) * step
    return Traffic(
        label=f"product {weight.shape[0]} x {weight.shape[1]}, {given['THEN']}",
        programs=programs,
        memory=weight.nbytes / programs,
        # With the weights that programs with other rows bring from memory.
        cached=further + own_weight - weight.nbytes / programs,
        flight=flight * (columns * weight.itemsize + rows * x.itemsize),
        operations=2 * len(x) * weight.numel() / programs,
        shared=flight * (columns * weight.itemsize + given["ROWS"] * x.itemsize + 8 * bool(normed)),
        threads=32 * options["num_warps"],
        # Before the first product a norm's rows come, and each is summed twice.
        waits=3 + normed if normed else 2,
        fetches=given["DEPENDENT"],
    )


def _filled(keys: Tensor, work: Work) -> float:
    """Positions of a cache that a step reads, on average over the clip."""
    if work.config.cross_attention and keys.shape[2] == PREFIX:
        return work.cross_length
    return _context(work)


def _context(work: Work) -> float:
    return work.prefix_length + (work.steps + 1) / 2


def _split(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given = launch.arguments
    filled = _filled(given["keys"], work)
    splits = math.ceil(filled / given["SPLIT"])
    programs = 1 if given["WHOLE"] else splits
    position = 2 * given["HEAD_DIM"] * cache_bytes
    read = filled / programs * position
    # What rows share comes from memory for the first of them, from the shared cache for the others.
    again = work.repeated / len(given["q"]) / programs * position
    # The next split comes into shared memory while one is worked on.
    ahead = given["SPLIT"] * position
    return Traffic(
        label="attention" if splits > 1 else "cross-attention",
        programs=launch.grid[0] * programs,
        memory=read - again,
        cached=again + 4 * given["HEAD_DIM"],  # with what it writes
        flight=min(read, ahead),
        shared=ahead if given["WHOLE"] else 1024,
        waits=3,  # for the lengths, then the row's place, and to write
    )


def _combine(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    given = launch.arguments
    splits = math.ceil(_context(work) / given["SPLIT"])
    return Traffic(
        label="attention's combination",
        programs=launch.grid[0],
        cached=4 * given["HEAD_DIM"] * splits,
        threads=32,
        # One split after the other: all have come with the first, four take as long as to come.
        waits=3 + splits // 4,
    )


def _norm(launch: Launch, work: Work, cache_bytes: int) -> Traffic:
    """Reads a row and what is pending, scale and shift; writes the row, and the half of it."""
    x, parts = launch.arguments["x"], launch.arguments["PARTS"]
    moved = (3.5 + (parts + 1 if parts else 0)) * x[0].nbytes
    return Traffic("norm", programs=len(x), cached=moved, threads=64, waits=3)


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
