"""The control groups of this process: the limits of a container, which the machine does not show.

A limit applies to the whole subtree below it, so every group on the path counts. The path depends
on how the container was started: with a private namespace the process sees its own group as the
root; with the host's (`--cgroupns=host`, or none at all) it is a folder deep below. Versions 1 and
2 of the interface may both be there, for different controllers.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")


def folders(controller: str) -> Iterator[Path]:
    """The group of this process for a controller (memory, cpu), and those above it.

    Version 2 is listed before version 1. Some folders may not exist: inside a container the path
    can be one that only the host sees.
    """
    try:
        lines = PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _upwards(ROOT, path)
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            # Mounted by all its names, or by a link with one of them.
            for name in dict.fromkeys((controllers, controller)):
                yield from _upwards(ROOT / name, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group below a mount, then its parents up to the mount."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])
