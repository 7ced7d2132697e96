"""How much memory is free, and giving it back."""

import ctypes
from collections.abc import Iterator

import torch

from musicgen.runtime import cgroups

# The files of a control group: limit, use, and the statistic of cached files that can be dropped.
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)

_LIBC = ctypes.CDLL(None)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # a GPU does not need it

    return min([int(psutil.virtual_memory().available), *_left_by_limits()])


def _left_by_limits() -> Iterator[int]:
    """The bytes that the memory limit of each control group leaves, a container's among them."""
    for folder in cgroups.folders("memory"):
        for limit, used, cached in CGROUP_FILES:
            try:
                maximum, current = (int((folder / name).read_text()) for name in (limit, used))
                statistics = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                # Files that were read, such as weights, count as used, but can be dropped.
                yield maximum - current + int(statistics[cached])
            except (OSError, ValueError, KeyError):  # no such files, or no limit ("max")
                continue


def give_back() -> None:
    """Return to the system what glibc keeps of what was freed; nothing with another libc.

    It keeps an arena for every few threads, each of which stays as large as the largest request
    that it ever served: with many callers, hundreds of megabytes that are never all in use.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
