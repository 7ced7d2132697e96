"""The hardware: its name, its memory bandwidth, and how much memory a computation uses."""

import contextlib
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from musicgen.runtime import memory

BUFFER = 1 << 30  # bytes: more than any processor's cache
TRIALS = 10
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Bandwidth:
    """The highest measured bandwidth in bytes/s, and the operation that reached it."""

    bytes_per_second: float
    how: str


def bandwidth(device: torch.device) -> Bandwidth:
    """Measures how fast memory is read sequentially: the best of three operations, ten times each.

    `sum` and `matrix times vector` read a buffer of 1 GiB; `copy` reads one half of it and writes
    the other. The fastest is used, as it is the strictest reference for the roofline.
    """
    rows = 1 << 14
    buffer = torch.ones(rows, BUFFER // 4 // rows, device=device)
    vector = torch.ones(buffer.shape[1], device=device)
    result = torch.empty(rows, device=device)
    source, target = buffer.view(-1).chunk(2)
    operations: dict[str, Callable[[], object]] = {
        "sum": buffer.sum,
        "matrix times vector": lambda: torch.mv(buffer, vector, out=result),
        "copy": lambda: target.copy_(source),
    }
    seconds = {
        how: min(_seconds(read, device) for _ in range(TRIALS)) for how, read in operations.items()
    }
    how = min(seconds, key=lambda name: seconds[name])
    return Bandwidth(BUFFER / seconds[how], f"{how}, 1 GiB, best of {TRIALS}")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


class PeakMemory:
    """The peak memory use since construction, minus the use at construction.

    On CUDA this is memory allocated by PyTorch; on the CPU it is the resident memory of the
    process, whose high-water mark Linux can reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        self.before = None
        with contextlib.suppress(OSError):  # not Linux, or no permission
            CLEAR.write_text("5")
            self.before = _status("VmRSS")

    def bytes(self) -> int | None:
        """Returns the peak, or None where it cannot be measured."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _status(key: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def release() -> None:
    """Return unused memory to the system and to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    memory.give_back()


def device_name(device: torch.device) -> str:
    """Returns the model name of the GPU or the processor, never the host's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2]
        return f"{name.strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def load_average() -> float:
    """Returns the load average of the last minute per processor.

    Before a run, this is the load of other processes. Above a few percent, CPU figures are
    meaningless: a thread that has lost its processor delays all threads that wait for it.
    """
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def commit() -> str:
    """Returns the commit of this code, with `-dirty` if files differ; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
