"""What a prediction knows of hardware: a handful of constants, each with where it is from."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import machine
from musicgen.decoder.kernels import cpu_ops, cpu_team, pack

# Of all GPUs. `sources` in the printed plan says the same.
LAUNCH = 1.3e-6  # s from one kernel of a CUDA graph to the next
DEPENDENT_LAUNCH = LAUNCH / 2  # where one begins before the other has ended
REACHED = 0.92  # of the data sheet's bandwidth that a kernel which only reads can have
MEMORY_LATENCY = 0.6e-6  # s until a read comes back from a memory that is busy
CACHE_LATENCY = 0.25e-6  # s from the cache that all processors share
# Threads and programs that fit a processor, by compute capability.
THREADS = {75: 1024, 80: 2048, 89: 1536, 90: 2048, 100: 2048}
PROGRAMS = {75: 16, 80: 32, 89: 24, 90: 32, 100: 32}
CACHE_BYTES = 32  # a processor gets from that cache in a clock cycle
SOURCES = """\
predicted from NVIDIA's data sheets: bandwidth, processors, clock, float16 arithmetic
predicted from what others measured: 1.3 us a launch in a graph, on H100 (Spector et al. 2025,
predicted from   "Look Ma, No Bubbles!", Hazy Research), taken for all GPUs
predicted from assumptions: 92% of the bandwidth within reach; 0.6 us for a read from busy memory,
predicted from   0.25 us from the shared cache; 32 bytes a cycle from there to a processor; half of
predicted from   the 1.3 us where launches overlap (MUSICGEN_DEPENDENT_LAUNCHES=1)"""


@dataclass(frozen=True)
class Card:
    """Hardware on which a number of processors reads one memory; seconds, bytes, operations."""

    name: str
    capability: int  # of the GPU for which launches are recorded
    bandwidth: float  # the data sheet's, or the measured one
    processors: int
    arithmetic: float  # operations a second, all processors together
    reachable: float  # bytes a second, all processors together
    processor_bytes: float  # a second that one processor can take in
    shared_memory: int  # bytes a processor
    threads: int  # that fit a processor, and
    programs: int  # of them at most
    launch: float
    dependent_launch: float
    memory_latency: float
    cache_latency: float
    overlaps: bool  # whether it computes while it reads: GPUs copy asynchronously


def gpu(
    name: str, capability: int, terabytes: float, processors: int, gigahertz: float, tera: float,
    shared_memory: int,
) -> Card:  # fmt: skip
    """One of NVIDIA's."""
    return Card(
        name=name,
        capability=capability,
        bandwidth=terabytes * 1e12,
        processors=processors,
        arithmetic=tera * 1e12,
        reachable=REACHED * terabytes * 1e12,
        processor_bytes=CACHE_BYTES * gigahertz * 1e9,
        shared_memory=shared_memory * 1024,
        threads=THREADS[capability],
        programs=PROGRAMS[capability],
        launch=LAUNCH,
        dependent_launch=DEPENDENT_LAUNCH,
        memory_latency=MEMORY_LATENCY,
        cache_latency=CACHE_LATENCY,
        overlaps=True,
    )


# TB/s, processors, GHz, TFLOP/s of dense float16, KiB of shared memory to a processor
GPUS = {
    "h100": gpu("H100 SXM", 90, 3.35, 132, 1.83, 989, 228),
    "h200": gpu("H200 SXM", 90, 4.8, 132, 1.83, 989, 228),
    "a100": gpu("A100 SXM 80 GB", 80, 2.039, 108, 1.41, 312, 164),
    "l40s": gpu("L40S", 89, 0.864, 142, 2.52, 362, 100),
    "t4": gpu("T4", 75, 0.32, 40, 1.59, 65, 64),
    "b200": gpu("B200", 100, 8.0, 148, 1.965, 2250, 228),
}

# What the driver calls them. Others of a family (PCIe, NVL) have other memory, and no plan.
DEVICES = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA L40S": "l40s",
    "Tesla T4": "t4",
    "NVIDIA B200": "b200",
}


def this_cpu(rows: int) -> Card:
    """This machine, from pieces of work that fit its caches and from reading its memory.

    No piece is a decode step, so a step of `rows` rows that comes out as predicted says something
    for the model.
    """
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    # In device_lock, so that none is in a cache, and so short that nobody comes between.
    parts = itertools.cycle(torch.ones(32, 1 << 23))
    bandwidth = 4 * (1 << 23) / _seconds(lambda: next(parts).sum())
    team = cpu_team(threads)
    ops = cpu_ops(team)
    weight, x = pack(torch.randn(512, 512).half(), team), torch.randn(rows, 512)
    product = _seconds(lambda: ops.replay(lambda o, x: o.linear(x, weight), (x,), key="product"))
    # So little attention that one thread does it alone.
    q, keys, one = torch.randn(2, 512), torch.randn(2, 8, 256, 64), torch.arange(2)
    alone, given = cpu_ops(cpu_team(1)), (q, one, torch.full((2,), 256))
    attend = _seconds(
        lambda: alone.replay(
            lambda ops, q, rows, lengths: ops.attention(q, keys, keys, rows, lengths),
            given,
            "attend",
        )
    )
    number = torch.zeros(1)
    launch = _seconds(lambda: number.add_(1))
    return Card(
        name=machine.device_name(cpu),
        capability=90,
        bandwidth=bandwidth,
        processors=threads,
        arithmetic=2 * rows * 512 * 512 / product,
        reachable=bandwidth,
        processor_bytes=2 * keys.nbytes / attend,
        shared_memory=1 << 20,
        threads=THREADS[90],
        programs=PROGRAMS[90],
        launch=launch,
        dependent_launch=launch,
        memory_latency=0.0,
        cache_latency=0.0,
        overlaps=False,
    )


def _seconds(run: Callable[[], object]) -> float:
    """The shortest call of two seconds' calls: some find the processors free."""
    least, end = math.inf, time.perf_counter() + 2
    while (start := time.perf_counter()) < end:
        run()
        least = min(least, time.perf_counter() - start)
    return least
