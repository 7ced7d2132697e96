"""The number of threads respects the affinity mask and the CPU quotas of control groups."""

import os

import pytest

from musicgen.runtime import cgroups, processors


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A folder of control groups; the function that sets the groups of this process."""
    process = tmp_path / "process"
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "PROCESS", process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    process.write_text("0::/\n")
    return tmp_path / "cgroup", process.write_text


def quota(folder, quota, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")


def test_without_a_quota_the_affinity_mask_counts(cgroup):
    root, _ = cgroup
    assert processors.available() == 8
    quota(root, "max")
    assert processors.available() == 8


@pytest.mark.parametrize(("microseconds", "threads"), [(400_000, 4), (250_000, 2), (50_000, 1)])
@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_limits_threads(cgroup, version, microseconds, threads):
    root, set_groups = cgroup
    set_groups("1:cpu,cpuacct:/a\n" if version == 1 else "0::/a\n")
    quota(root / ("cpu,cpuacct/a" if version == 1 else "a"), microseconds, version)
    assert processors.available() == threads


def test_version_1_has_no_limit_below_zero(cgroup):
    root, set_groups = cgroup
    set_groups("1:cpu:/\n")
    quota(root / "cpu", -1, version=1)
    assert processors.available() == 8


def test_the_smallest_quota_on_the_path_counts(cgroup):
    root, set_groups = cgroup
    set_groups("0::/pods/pod1\n")
    quota(root / "pods/pod1", 600_000)
    quota(root / "pods", 300_000)
    assert processors.available() == 3


def test_without_control_groups_the_affinity_mask_counts(cgroup, monkeypatch, tmp_path):
    monkeypatch.setattr(cgroups, "PROCESS", tmp_path / "missing")
    assert processors.available() == 8
