"""How much memory is free, what it means to have run out of it, and giving it back."""

import ctypes
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # a container's limits, which the machine's figures do not know
# Messages of allocators, in lower case. PyTorch has no exception class for the CPU; CUDA libraries
# report failed allocations of their own, such as CUBLAS_STATUS_ALLOC_FAILED.
EXHAUSTED = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "allocation_failed",
)

_LIBC = ctypes.CDLL(None)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # a GPU does not need it

    available: int = psutil.virtual_memory().available
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(map(str.split, (CGROUP / "memory.stat").read_text().splitlines()))
        # Files that were read, such as weights, count as used, but make room when asked to.
        return min(available, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return available


def is_exhausted(exc: BaseException) -> bool:
    """Whether an exception says that there was no memory left."""
    if isinstance(exc, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(exc, RuntimeError) and any(text in str(exc).lower() for text in EXHAUSTED)


def give_back() -> None:
    """Return to the system what glibc keeps of what was freed; nothing with another libc.

    It keeps an arena for every few threads, each of which stays as large as the largest request
    that it ever served: with many callers, hundreds of megabytes that are never all in use.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
