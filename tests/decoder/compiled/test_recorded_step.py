"""The launches of a decode step, recorded with tensors without memory, so nothing can be read."""

from dataclasses import replace
from math import prod

import pytest
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_plan.cost import launch_cost
from benchmarks.gpu_plan.launches import CUDA, step_launches
from benchmarks.gpu_plan.recorder import PROCESSORS
from benchmarks.work import MAX_SECONDS, PUBLISHED, Storage, Work, step_bytes

SHORT = ("small", "stereo-melody-large")
LONG = [pytest.param(model, marks=pytest.mark.full) for model in PUBLISHED if model not in SHORT]


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("model", [*SHORT, *LONG])
def test_a_step_uses_only_tensors_on_the_gpu(model, capability):
    """A copy to or from the host would wait, and a replay would repeat the captured copy."""
    launches = step_launches(replace(PUBLISHED[model], num_layers=2), 2, capability)
    assert len(launches) > 20
    for launch in launches:
        tensors = [v for v in tree_leaves(launch.arguments) if isinstance(v, Tensor)]
        assert {tensor.device for tensor in tensors} <= {CUDA}, launch.name


@pytest.mark.parametrize("melodies", [True, False])
@pytest.mark.parametrize("model", [*SHORT, *LONG])
def test_the_bytes_of_the_launches_add_up_to_the_bytes_of_the_step(model, melodies):
    """The plan counts per launch, the roofline by the model's shape; both give the same sum."""
    work = Work(model, MAX_SECONDS, 4, CUDA, melodies)
    parts = [launch_cost(launch, work) for launch in step_launches(work.config, work.batch, 90)]
    read = sum(part.programs * part.memory for part in parts)
    assert read == pytest.approx(step_bytes(work, Storage(2, 2)), rel=0.002)


@pytest.mark.parametrize("clips", [16, 32])
@pytest.mark.parametrize("model", ["small", "medium", "large"])
def test_products_of_many_rows_keep_the_processors_busy(model, clips):
    launches = step_launches(replace(PUBLISHED[model], num_layers=1), clips, 90)
    products = [one for one in launches if one.name == "_product_kernel"]
    assert len(products) > 4
    for launch in products:
        assert prod(launch.grid) > 2 / 3 * PROCESSORS[90], launch.grid
