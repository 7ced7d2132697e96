"""What a decode step launches, recorded with tensors that have no memory: nothing can be read."""

from dataclasses import replace

import pytest
from torch import Tensor
from torch.utils._pytree import tree_leaves

from musicgen.bench.launches import CUDA, step_launches
from musicgen.bench.work import PUBLISHED

SHORT = ("small", "stereo-melody-large")
LONG = [pytest.param(model, marks=pytest.mark.full) for model in PUBLISHED if model not in SHORT]


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("model", [*SHORT, *LONG])
def test_a_step_stays_on_its_gpu(model, capability):
    """A copy to or from the host would wait, and a replay would repeat the captured one."""
    launches = step_launches(replace(PUBLISHED[model], num_layers=2), 2, capability)
    assert len(launches) > 20
    for launch in launches:
        tensors = [v for v in tree_leaves(launch.arguments) if isinstance(v, Tensor)]
        assert {tensor.device for tensor in tensors} <= {CUDA}, launch.name
