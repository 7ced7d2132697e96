"""The GPU tests themselves, with CUDA calls replaced: that they can pass on every GPU."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import test_gpu_engine
import torch
from sync_debug import waiting_is_an_error

from musicgen.decoder import kernels

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]


@pytest.mark.filterwarnings("error")
def test_the_synchronization_mode_is_reset_and_its_warning_ignored(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    with waiting_is_an_error():
        assert torch.cuda.get_sync_debug_mode() == 2
    assert torch.cuda.get_sync_debug_mode() == 0
    with pytest.raises(KeyError), waiting_is_an_error():
        raise KeyError
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize("shape", test_gpu_engine.SHAPES)
def test_the_kernel_test_passes_on_gpus_before_and_after_ampere(capability, shape, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(kernels, "check", lambda *arguments: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test_gpu_engine.test_kernels_build_and_agree_with_their_references(shape, 2)


def test_exact_batching_is_only_required_where_triton_multiplies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (7, 5))
    with pytest.raises(pytest.skip.Exception, match="cuBLAS"):
        test_gpu_engine.require_independent_rows()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    test_gpu_engine.require_independent_rows()


def test_the_gpu_tests_are_collected_without_the_repositorys_configuration():
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", str(FOLDER)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "-q", "--co",
         str(FOLDER / "test_gpu_engine.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "test_codes_are_within_range[stereo]" in done.stdout
    assert "warning" not in done.stdout
