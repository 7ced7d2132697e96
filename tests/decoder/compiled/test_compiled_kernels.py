"""The compiled kernels of a decode step for many GPUs: no spills, wide copies, equal sums."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu_plan.cost import launch_cost
from benchmarks.gpu_plan.launches import CUDA, step_launches
from benchmarks.gpu_plan.recorder import Launch
from benchmarks.work import MAX_SECONDS, PUBLISHED, Work
from musicgen.decoder import kernels
from musicgen.decoder.gpus import SHARED_MEMORY
from musicgen.decoder.kernels import compiler

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SPILL = 16  # bytes of a thread's local memory
HALF_TO_FLOAT = re.compile(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.(f\d+)\.f16\.f16\.(f\d+)")
ACCESS = re.compile(r"\b(ld|st|atom|red)\.\S*global|cp\.async\.c")
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global .*?\], \[.*?\], (0x\w+|\d+)")


@dataclass(frozen=True)
class Machine:
    """The compiled kernel of a launch."""

    launch: Launch
    ttgir: str
    ptx: str
    shared: int  # bytes
    stack: int  # bytes a thread

    @property
    def name(self):
        return self.launch.name

    def copied(self):
        """{bytes of one copy: bytes that all asynchronous copies of this size load}."""
        sizes = Counter(int(size, 0) for size in COPY.findall(self.ptx))
        threads = 32 * self.launch.code.options["num_warps"]
        return {size: size * count * threads for size, count in sizes.items()}

    def sums(self):
        """The thread layouts of the tensors that are summed."""
        layouts = dict(re.findall(r"^(#\w+) = (.*)$", self.ttgir, re.MULTILINE))
        summed = re.findall(r'"tt.reduce".*?\}\) : \((.*?)\) ->', self.ttgir, re.DOTALL)
        return {re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), s) for s in summed}


BUILT = {}


def build(launch, capability):
    code, key = launch.code, f"{capability} {launch.code}"
    if key not in BUILT:
        source = ASTSource(code.kernel, code.signature, code.constants, code.attributes)
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=code.options)
        stack = resources(built.asm["cubin"])["STACK"]
        BUILT[key] = Machine(
            launch, built.asm["ttgir"], built.asm["ptx"], built.metadata.shared, stack
        )
    return BUILT[key]


def resources(cubin):
    """The resources that a kernel uses: {"REG": 40, "STACK": 0, ...}."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


@cache
def built(capability, model, clips):
    """All kernels of a step. One layer is enough, because all layers launch the same kernels."""
    config = replace(PUBLISHED[model], num_layers=1)
    launches = {str(one.code): one for one in step_launches(config, clips, capability) if one.code}
    return [build(launch, capability) for launch in launches.values()]


def steps(capabilities, models, batches):
    return [(c, m, b) for c in capabilities for m in models for b in batches]


@pytest.fixture(
    scope="module",
    params=steps((75, 90), ("small", "stereo-melody-large"), (1, 32))
    + [
        pytest.param(step, marks=pytest.mark.full)
        for step in steps(SHARED_MEMORY, PUBLISHED, (1, 2, 4, 8, 16, 32))
    ],
    ids=lambda step: "sm_{}-{}-{}".format(*step),
)
def step(request):
    return request.param


def test_kernels_build_and_do_not_spill(step):
    found = built(*step)
    names = {made.name for made in found}
    assert {"_split_kernel", "_sample_kernel"} <= names
    whole = [m.launch.arguments["WHOLE"] for m in found if m.name == "_split_kernel"]
    assert ("_combine_kernel" in names) == (not all(whole))
    for made in found:
        assert made.stack <= SPILL, made.name


def test_shared_memory_fits(step):
    for made in built(*step):
        assert made.shared <= SHARED_MEMORY[step[0]], made.name


def test_products_use_tensor_cores_and_sum_in_float32(step):
    products = [made for made in built(*step) if made.name == "_product_kernel"]
    # GPUs whose tensor cores Triton does not use have products of cuBLAS.
    assert bool(products) == (divmod(step[0], 10) >= kernels.TENSOR_CORES)
    for made in products:
        sums = HALF_TO_FLOAT.findall(made.ptx)
        assert sums
        assert set(sums) == {("f32", "f32")}


def test_weights_come_in_copies_of_16_bytes(step):
    for made in built(*step):
        if made.name == "_product_kernel":
            given, copied = made.launch.arguments, made.copied()
            steps = made.launch.code.options["num_stages"] * depth(given)
            x_bytes = given["x"].itemsize * given["ROWS"]
            # All weights are copied in this way: `stages` tiles before and in the loop.
            weights = steps * (2 * given["COLUMNS"] * given["STRIPS"] + x_bytes)
            assert copied.pop(16) == weights
            # The other copies are the scale and shift of a LayerNorm.
            assert sum(copied.values()) == (steps * 8 if given["NORM"] else 0)


def depth(given):
    return given["CHUNKS"] // given["PARTS"] * given["DEPTH"]


def test_norms_have_the_same_order_of_sums_in_every_kernel(step):
    """With few rows products compute the LayerNorm, with many a kernel does; bits must be equal."""
    capability, model, _ = step
    made = [one for clips in (1, 32) for one in built(capability, model, clips)]
    norms = [one for one in made if "TILE" in one.launch.arguments and one.sums()]
    kinds = {(one.name, one.launch.arguments["PARTS"]) for one in norms}
    assert len(kinds) == (3 if divmod(capability, 10) >= kernels.TENSOR_CORES else 0)
    layouts = {layout for one in norms for layout in one.sums()}
    assert len(layouts) == bool(norms), layouts


def test_keys_and_values_come_in_pieces_of_16_bytes(step):
    for made in built(*step):
        if made.name == "_split_kernel":
            copies = made.copied() if made.launch.arguments["WHOLE"] else {}
            assert set(copies) == {16} or made.ptx.count("ld.global.v4.b32") >= 16


def test_splits_have_the_same_order_of_sums_in_every_kernel(step):
    """One clip's splits have a program each, many clips' do not; bits must be equal."""
    capability, model, _ = step
    made = [one for clips in (1, 32) for one in built(capability, model, clips)]
    splits = [one for one in made if one.name == "_split_kernel"]
    assert any(one.launch.arguments["WHOLE"] for one in splits)
    assert len({frozenset(one.sums()) for one in splits}) == 1


def test_a_plan_knows_the_shared_memory_of_products(step):
    _, model, clips = step
    work = Work(model, MAX_SECONDS, clips, CUDA)
    for made in built(*step):
        if made.name == "_product_kernel":
            planned = launch_cost(made.launch, work).shared_memory
            norm = made.launch.arguments["NORM"]
            # A LayerNorm needs another buffer to change the layout of its factors.
            assert made.shared - 4096 * bool(norm) <= planned <= made.shared


@pytest.mark.parametrize("clips", [1, 32])
@pytest.mark.parametrize("capability", [90, pytest.param(120, marks=pytest.mark.full)])
def test_dependent_launches_touch_nothing_before_they_have_waited(capability, clips, monkeypatch):
    monkeypatch.setattr(compiler, "DEPENDENT", True)
    launches = step_launches(replace(PUBLISHED["small"], num_layers=1), clips, capability)
    for launch in {str(one.code): one for one in launches if one.code}.values():
        made = build(launch, capability)
        assert launch.code.options["launch_pdl"]
        assert made.stack <= SPILL
        before, after = made.ptx.split("griddepcontrol.wait;")
        assert not ACCESS.search(before), launch.name
        assert ACCESS.search(after)
        assert "griddepcontrol.launch_dependents;" in after
        assert ("prefetch.global.L2" in before) == (launch.name == "_product_kernel")


def test_only_gpus_that_support_dependent_launches_use_them(monkeypatch):
    monkeypatch.setattr(compiler, "DEPENDENT", True)
    launches = step_launches(replace(PUBLISHED["small"], num_layers=1), 1, 89)
    given = [
        (one.arguments["DEPENDENT"], one.code.options["launch_pdl"]) for one in launches if one.code
    ]
    assert set(given) == {(False, False)}
