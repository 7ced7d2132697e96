"""Constants of the hardware that predictions use, each with its source."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import machine
from musicgen.decoder.kernels import cpu_ops, cpu_team, pack

# The same for all GPUs. SOURCES, which a plan prints, lists where they are from.
LAUNCH = 1.3e-6  # s between the starts of two empty kernels of a CUDA graph
DEPENDENT_LAUNCH = LAUNCH / 2  # s, where a kernel starts before the previous one ends
REACHABLE = 0.92  # share of the data sheet's bandwidth that a kernel can reach by reading only
MEMORY_LATENCY = 0.6e-6  # s, a read from busy memory
CACHE_LATENCY = 0.25e-6  # s, a read from the L2 cache, which all processors share
# Most resident threads and programs (blocks) of one processor (SM), by compute capability.
THREADS = {75: 1024, 80: 2048, 89: 1536, 90: 2048, 100: 2048}
PROGRAMS = {75: 16, 80: 32, 89: 24, 90: 32, 100: 32}
CACHE_BYTES = 32  # from the L2 cache to one processor, per clock cycle
SOURCES = """\
predicted from NVIDIA's data sheets: bandwidth, processors, clock, float16 arithmetic
predicted from a published measurement: 1.3 us per launch in a CUDA graph, on H100 (Spector et al.
predicted from   2025, "Look Ma, No Bubbles!", Hazy Research); used for all GPUs
predicted from assumptions: 92% of the bandwidth is reachable; a read takes 0.6 us from busy memory
predicted from   and 0.25 us from the L2 cache; a processor receives 32 bytes per cycle from L2;
predicted from   overlapped launches (MUSICGEN_DEPENDENT_LAUNCHES=1) take half of the 1.3 us"""


@dataclass(frozen=True)
class Card:
    """Processors that read one memory. Units are seconds, bytes and operations (FLOP)."""

    name: str
    capability: int  # launches are recorded for this compute capability
    bandwidth: float  # bytes/s, from the data sheet or measured
    processors: int
    arithmetic: float  # operations/s of all processors
    reachable: float  # bytes/s from memory that all processors together can reach
    processor_bytes: float  # bytes/s that one processor can receive
    shared_memory: int  # bytes per processor
    threads: int  # most resident threads per processor
    programs: int  # most resident programs per processor
    launch: float
    dependent_launch: float
    memory_latency: float
    cache_latency: float
    overlaps: bool  # whether it computes while it reads, as GPUs do with asynchronous copies


def gpu(
    name: str, capability: int, terabytes: float, processors: int, gigahertz: float, tera: float,
    shared_memory: int,
) -> Card:  # fmt: skip
    """Returns an NVIDIA GPU by the figures of its data sheet."""
    return Card(
        name=name,
        capability=capability,
        bandwidth=terabytes * 1e12,
        processors=processors,
        arithmetic=tera * 1e12,
        reachable=REACHABLE * terabytes * 1e12,
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


# Capability, TB/s, processors, GHz, TFLOP/s of dense float16, KiB of shared memory per processor.
GPUS = {
    "h100": gpu("H100 SXM", 90, 3.35, 132, 1.83, 989, 228),
    "h200": gpu("H200 SXM", 90, 4.8, 132, 1.83, 989, 228),
    "a100": gpu("A100 SXM 80 GB", 80, 2.039, 108, 1.41, 312, 164),
    "l40s": gpu("L40S", 89, 0.864, 142, 2.52, 362, 100),
    "t4": gpu("T4", 75, 0.32, 40, 1.59, 65, 64),
    "b200": gpu("B200", 100, 8.0, 148, 1.965, 2250, 228),
}

# Names as the driver reports them. Other cards of a family (PCIe, NVL) have other memory and are
# not predicted.
DEVICES = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA L40S": "l40s",
    "Tesla T4": "t4",
    "NVIDIA B200": "b200",
}


def this_cpu(rows: int) -> Card:
    """Returns this machine, from measurements of its memory and of small operations in cache.

    None of the measurements is a decode step, so a step of `rows` rows that matches its prediction
    confirms the model.
    """
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    # Each buffer is read after 31 others, so none is in a cache. Each read is short, so that some
    # are not interrupted by other processes.
    parts = itertools.cycle(torch.ones(32, 1 << 23))
    bandwidth = 4 * (1 << 23) / _seconds(lambda: next(parts).sum())
    team = cpu_team(threads)
    ops = cpu_ops(team)
    weight, x = pack(torch.randn(512, 512).half(), team), torch.randn(rows, 512)
    product = _seconds(lambda: ops.replay(lambda o, x: o.linear(x, weight), (x,), key="product"))
    # Small enough to run in one thread.
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
    """Returns the shortest call within two seconds: some run while the processors are idle."""
    fastest, end = math.inf, time.perf_counter() + 2
    while (start := time.perf_counter()) < end:
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
