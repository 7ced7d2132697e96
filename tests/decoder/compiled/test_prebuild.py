"""Kernels that are compiled ahead of time are found by Triton's own launch path."""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu_plan.prebuild import build, step_codes
from musicgen.decoder.kernels import compiler
from musicgen.decoder.sampling import SamplingRows

CAPABILITY = 90


class FakeDriver:
    """A CUDA driver with one GPU, on which nothing can be launched."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_triton_finds_the_prebuilt_sampling_kernel(cache, monkeypatch):
    [code] = [
        c for c in step_codes("small", CAPABILITY, 2) if c.kernel.__name__ == "_sample_kernel"
    ]
    build([code], CAPABILITY)
    entries = sorted(path.name for path in cache.iterdir())
    assert len(entries) == 1

    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver(), raising=False)
    monkeypatch.setattr(code.kernel, "device_caches", type(code.kernel.device_caches)(
        code.kernel.create_binder
    ))  # fmt: skip
    clips, n_q, card = 2, 4, 2048
    logits = torch.zeros(2 * clips, n_q, card, dtype=torch.float16)
    noise, rows = torch.ones(clips, n_q, card), SamplingRows.empty(clips, torch.device("cpu"))
    codes = torch.zeros(clips, n_q, dtype=torch.int64)
    arguments = (logits, noise, rows.top_k, rows.top_p, rows.temperature, rows.cfg_coef, codes)
    compiled = code.kernel.warmup(
        *arguments, n_q, card, BLOCK=2048, num_warps=8, grid=(clips, n_q),
        **compiler.launch(torch.device("cpu")),
    )  # fmt: skip
    assert compiled.asm["cubin"]
    assert sorted(path.name for path in cache.iterdir()) == entries
