"""What the hardware is, how fast its memory is read, and how much of it something takes."""

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

BUFFER = 1 << 30  # bytes: more than any processor's cache
TRIALS = 10
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Bandwidth:
    """The most that `how` reached, in bytes a second."""

    bytes_per_second: float
    how: str


def bandwidth(device: torch.device) -> Bandwidth:
    """How fast memory is read, as streaming weights does: the best of three ways and ten trials.

    `sum` and `matrix times vector` read a buffer of 1 GiB; `copy` reads one half of it and writes
    the other. The best of them is the hardest to come near.
    """
    rows = 1 << 14
    buffer = torch.ones(rows, BUFFER // 4 // rows, device=device)
    vector = torch.ones(buffer.shape[1], device=device)
    result = torch.empty(rows, device=device)
    source, target = buffer.view(-1).chunk(2)
    ways: dict[str, Callable[[], object]] = {
        "sum": buffer.sum,
        "matrix times vector": lambda: torch.mv(buffer, vector, out=result),
        "copy": lambda: target.copy_(source),
    }
    seconds = {
        how: min(_seconds(read, device) for _ in range(TRIALS)) for how, read in ways.items()
    }
    how = min(seconds, key=lambda way: seconds[way])
    return Bandwidth(BUFFER / seconds[how], f"{how}, 1 GiB, best of {TRIALS}")


def synchronize(device: torch.device) -> None:
    """Wait for all that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


class PeakMemory:
    """The most memory that was in use at once since it was made, above what was in use then.

    On CUDA what PyTorch allocated; on the CPU the process's resident memory, whose high-water mark
    Linux can reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        self.before = None
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            CLEAR.write_text("5")
            self.before = _status("VmRSS")

    def bytes(self) -> int | None:
        """None where it is not known."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _status(key: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def device_name(device: torch.device) -> str:
    """The model of the GPU or of the processor; never the host's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2]
        return f"{name.strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def others_load() -> float:
    """Load average of the last minute for each processor; asked before a run, it is others' work.

    Above a few percent CPU figures mean nothing: a thread that waits for one that has no processor
    slows whoever uses more threads by far more than its share.
    """
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def commit() -> str:
    """The commit of this code, `-dirty` if it was changed since; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
