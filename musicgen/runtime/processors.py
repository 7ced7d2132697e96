"""How many processors this process may use."""

import math
import os
from collections.abc import Iterator

from musicgen.runtime import cgroups


def available() -> int:
    """The threads that can run at once: by the affinity mask and by the quotas of control groups.

    A quota that is not a whole number of processors is rounded down, to at least one: a thread
    more would be stopped in the middle of its work, and the others would wait for it.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.floor(min([float(affinity or 1), *_quotas()])))


def _quotas() -> Iterator[float]:
    """The quota of each control group that has one, in processors."""
    for folder in cgroups.folders("cpu"):
        try:
            if (folder / "cpu.max").exists():  # version 2: "max 100000" or "150000 100000"
                quota, period = (folder / "cpu.max").read_text().split()
            else:  # version 1: -1 is no limit
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            processors = int(quota) / int(period)
        except (OSError, ValueError):  # no such folder, or no limit ("max")
            continue
        if processors > 0:
            yield processors
