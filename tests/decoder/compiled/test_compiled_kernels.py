"""What compilers say of the kernels that the engine's own decode step would launch, for any GPU."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from musicgen.bench.launches import CUDA, step_launches
from musicgen.bench.traffic import traffic
from musicgen.bench.work import MAX_SECONDS, PUBLISHED, Work
from musicgen.decoder import kernels
from musicgen.decoder.kernels.recorder import SHARED_MEMORY, Launch

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SPILL = 16  # bytes of a thread's local memory
HALF_TO_FLOAT = re.compile(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.(f\d+)\.f16\.f16\.(f\d+)")
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global .*?\], \[.*?\], (0x\w+|\d+)")


@dataclass(frozen=True)
class Machine:
    """What became of the kernel of a launch."""

    launch: Launch
    ptx: str
    shared: int  # bytes
    stack: int  # bytes a thread

    @property
    def name(self):
        return self.launch.name

    def copies(self):
        """Bytes of each asynchronous copy into shared memory that stands in the code."""
        return [int(size, 0) for size in COPY.findall(self.ptx)]


BUILT = {}


def build(launch, capability):
    code, key = launch.code, f"{capability} {launch.code}"
    if key not in BUILT:
        source = ASTSource(code.kernel, code.signature, code.constants, code.attributes)
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=code.options)
        stack = resources(built.asm["cubin"])["STACK"]
        BUILT[key] = Machine(launch, built.asm["ptx"], built.metadata.shared, stack)
    return BUILT[key]


def resources(cubin):
    """What the assembler took for a kernel: {"REG": 40, "STACK": 0, ...}."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


@cache
def built(capability, model, clips):
    """All kernels of a step. Layers are alike: one will do."""
    config = replace(PUBLISHED[model], num_layers=1)
    launches = {str(one.code): one for one in step_launches(config, clips, capability) if one.code}
    return [build(launch, capability) for launch in launches.values()]


def steps(capabilities, models, batches):
    return [(c, m, b) for c in capabilities for m in models for b in batches]


@pytest.fixture(
    scope="module",
    params=steps((75, 90, 120), ("small", "stereo-melody-large"), (1, 32))
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
    assert {"_split_kernel", "_combine_kernel", "_sample_kernel"} <= {made.name for made in found}
    for made in found:
        assert made.stack <= SPILL, made.name


def test_shared_memory_fits(step):
    for made in built(*step):
        assert made.shared <= SHARED_MEMORY[step[0]], made.name


def test_products_use_tensor_cores_and_sum_in_float32(step):
    products = [made for made in built(*step) if made.name == "_product_kernel"]
    # Where Triton has no tensor cores, there are no products of Triton's.
    assert bool(products) == (divmod(step[0], 10) >= kernels.TENSOR_CORES)
    for made in products:
        sums = HALF_TO_FLOAT.findall(made.ptx)
        assert sums
        assert set(sums) == {("f32", "f32")}


def test_weights_come_in_copies_of_16_bytes(step):
    for made in built(*step):
        if made.name == "_product_kernel":
            options, given = made.launch.code.options, made.launch.arguments
            tiles = 2 * 2 * given["DEPTH"] * (given["ROWS"] + given["COLUMNS"])
            assert set(made.copies()) == {16}
            # None comes in another way: before the loop and in it, as many as there are stages.
            copied = sum(made.copies()) * 32 * options["num_warps"]
            assert copied == options["num_stages"] * tiles


def test_keys_and_values_come_in_loads_of_16_bytes(step):
    for made in built(*step):
        if made.name == "_split_kernel":
            assert made.ptx.count("ld.global.v4.b32") >= 16


def test_a_plan_knows_the_shared_memory_of_products(step):
    _, model, clips = step
    work = Work(model, MAX_SECONDS, clips, CUDA)
    for made in built(*step):
        if made.name == "_product_kernel":
            assert traffic(made.launch, work).shared == made.shared
