"""The cost of a recorded launch: its programs, the bytes they move, their arithmetic."""

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
class Cost:
    """The cost of one launch. Figures are per program, unless `programs` is 0."""

    label: str
    programs: int = 0  # 0: unknown, enough to fill the card; figures are of the whole launch
    memory: float = 0.0  # bytes read from memory
    cached: float = 0.0  # further bytes, from the L2 cache
    in_flight: float = math.inf  # bytes that are requested at once
    operations: float = 0.0
    shared_memory: int = 1024  # bytes
    threads: int = 128
    waits: int = 2  # reads from the L2 cache that depend on each other
    dependent: bool = False  # starts before the launch that it depends on has ended
    prefetches: bool = False  # requests its weights from memory as it starts


def launch_cost(launch: Launch, work: Work, cache_bytes: int = 2) -> Cost:
    """Returns the cost of a launch. Raises KeyError for an unknown Triton kernel."""
    if launch.code is None:
        return _operation(launch)
    cost = KERNELS[launch.name](launch, work, cache_bytes)
    return replace(cost, dependent=launch.arguments["DEPENDENT"])


def _product(launch: Launch, work: Work, cache_bytes: int) -> Cost:
    given, options = launch.arguments, launch.code.options if launch.code else {}
    x, weight, normed, parts = (given[name] for name in ("x", "weight", "NORM", "PARTS"))
    programs = math.prod(launch.grid)
    columns, rows = given["COLUMNS"] * given["STRIPS"], min(len(x), given["ROWS"])
    own = given["CHUNKS"] // parts
    step = own * given["DEPTH"]  # elements of the depth that are loaded at a time
    own_weight = columns * weight[0].nbytes / parts
    # A norm reads its rows, then reads them again with its scale and shift at every step.
    further = 2 * x.nbytes + 2 * x[0].nbytes if normed else rows * x[0].nbytes / parts
    if parts > 1:
        further += rows * columns * 4  # partial sums, written for the norm that follows
    in_flight = (options["num_stages"] - 1) * step
    return Cost(
        label=f"product {weight.shape[0]} x {weight.shape[1]}, {given['THEN']}",
        programs=programs,
        memory=weight.nbytes / programs,
        # Includes weights that programs with other rows have read from memory.
        cached=further + own_weight - weight.nbytes / programs,
        in_flight=in_flight * (columns * weight.itemsize + rows * x.itemsize),
        operations=2 * len(x) * weight.numel() / programs,
        shared_memory=in_flight
        * (columns * weight.itemsize + given["ROWS"] * x.itemsize + 8 * bool(normed)),
        threads=32 * options["num_warps"],
        # A norm first reads its rows and sums each of them twice.
        waits=3 + normed if normed else 2,
        prefetches=given["DEPENDENT"],
    )


def _filled(keys: Tensor, work: Work) -> float:
    """Returns the positions of a cache that a step reads, on average over the clip."""
    if work.config.cross_attention and keys.shape[2] == PREFIX:
        return work.cross_length
    return _context(work)


def _context(work: Work) -> float:
    return work.prefix_length + (work.steps + 1) / 2


def _split(launch: Launch, work: Work, cache_bytes: int) -> Cost:
    given = launch.arguments
    filled = _filled(given["keys"], work)
    splits = math.ceil(filled / given["SPLIT"])
    programs = 1 if given["WHOLE"] else splits
    position = 2 * given["HEAD_DIM"] * cache_bytes
    read = filled / programs * position
    # A shared prefix is read from memory for the first row, from the L2 cache for the others.
    again = work.reused_positions / len(given["q"]) / programs * position
    # The next split is loaded into shared memory while the current one is computed.
    ahead = given["SPLIT"] * position
    return Cost(
        label="attention" if splits > 1 else "cross-attention",
        programs=launch.grid[0] * programs,
        memory=read - again,
        cached=again + 4 * given["HEAD_DIM"],  # includes the result, which it writes
        in_flight=min(read, ahead),
        shared_memory=ahead if given["WHOLE"] else 1024,
        waits=3,  # the lengths, then the row's address, then the write
    )


def _combine(launch: Launch, work: Work, cache_bytes: int) -> Cost:
    given = launch.arguments
    splits = math.ceil(_context(work) / given["SPLIT"])
    return Cost(
        label="combination of attention splits",
        programs=launch.grid[0],
        cached=4 * given["HEAD_DIM"] * splits,
        threads=32,
        # All splits arrive with the first; summing four of them takes as long as one read.
        waits=3 + splits // 4,
    )


def _norm(launch: Launch, work: Work, cache_bytes: int) -> Cost:
    """Reads a row with its pending parts, scale and shift; writes the row in fp32 and fp16."""
    x, parts = launch.arguments["x"], launch.arguments["PARTS"]
    moved = (3.5 + (parts + 1 if parts else 0)) * x[0].nbytes
    return Cost("norm", programs=len(x), cached=moved, threads=64, waits=3)


def _sample(launch: Launch, work: Work, cache_bytes: int) -> Cost:
    given = launch.arguments
    read = given["logits"].nbytes + given["noise"].nbytes
    programs = math.prod(launch.grid)
    # A search over 31 bits, one after another; each needs a sum over the program's threads.
    return Cost("sampling", programs, memory=read / programs, threads=256, waits=10)


KERNELS: dict[str, Callable[[Launch, Work, int], Cost]] = {
    "_product_kernel": _product,
    "_split_kernel": _split,
    "_combine_kernel": _combine,
    "_norm_kernel": _norm,
    "_sample_kernel": _sample,
}
# Operations that read or write only a part of their first tensor.
PARTIAL = {"embedding", "index", "index_put_"}


def _operation(launch: Launch) -> Cost:
    """Returns the cost of a PyTorch operation, which reads and writes its tensors once."""
    name, arguments = launch.name, dict(launch.arguments)
    if name == "mm":
        x, weight = (arguments[key] for key in ("self", "mat2"))
        columns, depth = weight.shape[1], weight.shape[0]
        operations = 2.0 * len(x) * weight.numel()
        label = f"product {columns} x {depth}, cuBLAS"
        return Cost(label, memory=weight.nbytes, operations=operations)
    if name in PARTIAL:
        arguments.pop(next(iter(arguments)))
    if name.endswith("_"):
        arguments.pop("result")
    return Cost("PyTorch operations", cached=sum(_bytes(v) for v in arguments.values()))


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
