"""Free memory decides how many clips decode at once."""

import psutil
import pytest
import torch

from musicgen.decoder.decode_steps import BATCHES, slot_columns
from musicgen.decoder.slots import SLOTS_SHARE, slots_that_fit
from musicgen.decoder.state import State
from musicgen.errors import MusicGenError
from musicgen.pipeline import MusicGen
from musicgen.runtime import cgroups, memory

CPU = torch.device("cpu")


NAMES = {2: ("max", "current", ""), 1: ("limit_in_bytes", "usage_in_bytes", "total_")}


def limit(folder, maximum, current, inactive, version=2):
    limit, used, prefix = NAMES[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{limit}").write_text(f"{maximum}\n")
    (folder / f"memory.{used}").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {inactive}\n")


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A folder of control groups; the function that sets the groups of this process."""
    process = tmp_path / "process"
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "PROCESS", process)
    process.write_text("0::/\n")
    return tmp_path / "cgroup", process.write_text


def test_without_a_limit_free_memory_is_that_of_the_machine(cgroup):
    root, _ = cgroup
    available = psutil.virtual_memory().available
    assert memory.free_bytes(CPU) == pytest.approx(available, rel=0.2)
    limit(root, "max", 100, 5)
    assert memory.free_bytes(CPU) == pytest.approx(available, rel=0.2)


GROUPS = {
    "a namespace of its own": ("0::/\n", "", 2),
    "the host's namespace": ("0::/system.slice/docker-1.scope\n", "system.slice/docker-1.scope", 2),
    "a limit of a slice above": ("0::/pods/pod1/container1\n", "pods/pod1", 2),
    "version 1": ("4:memory:/docker/1\n1:cpu:/\n0::/\n", "memory/docker/1", 1),
    "version 1, a path of the host": ("4:memory:/docker/1\n", "memory", 1),
    "version 1, two controllers": ("4:hugetlb,memory:/a\n", "hugetlb,memory/a", 1),
}


@pytest.mark.parametrize("case", GROUPS)
def test_in_a_container_free_memory_is_the_rest_of_its_limit(cgroup, case):
    root, set_groups = cgroup
    groups, folder, version = GROUPS[case]
    set_groups(groups)
    limit(root / folder, 1_000_000, 700_000, 200_000, version)
    assert memory.free_bytes(CPU) == 500_000


def test_the_smallest_limit_on_the_path_counts(cgroup):
    root, set_groups = cgroup
    set_groups("0::/pods/pod1\n")
    limit(root / "pods/pod1", 1_000_000, 0, 0)
    limit(root / "pods", 900_000, 0, 100)
    assert memory.free_bytes(CPU) == 900_100


@pytest.mark.parametrize(("fits", "slots"), [(0, 1), (0.5, 1), (1.5, 1), (3.1, 3), (1000, 32)])
def test_slots_are_as_many_as_fit(models, fits, slots):
    lm, length, prefix = models["stereo-melody"].engine.lm, 1500, 700
    size = State.slot_bytes(lm, slot_columns(lm, length), prefix)
    assert slots_that_fit(lm, fits * size / SLOTS_SHARE, length, prefix) == slots
    # The shared prefix takes half a slot.
    free = (fits + 0.5) * size / SLOTS_SHARE
    assert slots_that_fit(lm, free, length, prefix, shared=True) == slots
    assert slots <= BATCHES[-1]


def test_the_operator_can_lower_the_number_of_slots(checkpoints, monkeypatch):
    monkeypatch.setenv("MUSICGEN_SLOTS", "5")
    assert MusicGen.load(checkpoints["text"], "cpu").engine.slots == 5
    for wrong in ("0", "33", "-1", "many", "1.5"):
        monkeypatch.setenv("MUSICGEN_SLOTS", wrong)
        with pytest.raises(MusicGenError, match=f"MUSICGEN_SLOTS='{wrong}': .*from 1 to 32"):
            MusicGen.load(checkpoints["text"], "cpu")


@pytest.mark.parametrize("kind", ["text", "stereo-melody"])
def test_slot_bytes_is_the_size_of_a_slot(models, kind):
    engine = models[kind].engine
    cache = engine.state.cache
    tensors = (cache.keys, cache.values, cache.cross_keys, cache.cross_values)
    rows = 2 * len(engine.state.column) + (cache.shared_lengths is not None)
    held = sum(tensor.nbytes for tensor in tensors) / rows * 2
    said = State.slot_bytes(
        engine.lm, slot_columns(engine.lm, engine.max_length), models[kind].conditioner.longest
    )
    assert held == said


@pytest.mark.skipif(not hasattr(memory._LIBC, "malloc_trim"), reason="not glibc")
def test_freed_memory_returns_to_the_system():
    """200 MB of small blocks, freed while a later one is still in use."""
    blocks = [bytearray(50_000) for _ in range(4000)]
    last = blocks[-1]
    del blocks
    held = psutil.Process().memory_info().rss
    memory.give_back()
    assert psutil.Process().memory_info().rss < held - 150e6
    assert len(last) == 50_000
