"""The operations of each backend agree; Triton's are tested in its interpreter and its compiler.

Without a GPU, Triton is imported only if an environment variable asks for it at the start, so the
tests that need it run as separate pytest processes: interpreted/ and compiled/.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicgen.decoder import kernels
from musicgen.decoder.kernels import compiler

SHAPE = kernels.Shape(dim=64, ffn_dim=128, head_dim=16, outputs=1024)
CPU = torch.device("cpu")


def run_with_triton(folder, interpret, *arguments):
    pytest.importorskip("triton")
    tests = Path(__file__).parent / folder
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(
        [*command, *arguments],
        env=os.environ | {"TRITON_INTERPRET": interpret},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


@pytest.mark.triton
def test_triton_kernels_agree_with_their_references_in_the_interpreter():
    run_with_triton("interpreted", "1")


@pytest.mark.triton
def test_triton_kernels_compile_without_a_gpu():
    run_with_triton("compiled", "0")


@pytest.mark.full
def test_triton_kernels_of_every_model_compile_for_every_gpu():
    run_with_triton("compiled", "0", "-m", "full")


def test_a_wrong_operation_is_detected():
    class Wrong(kernels.TorchOps):
        linear_add = staticmethod(lambda x, weight, residual: residual)

    with pytest.raises(ArithmeticError, match="linear_add"):
        kernels.check(Wrong(), kernels.TORCH, CPU, torch.float32, SHAPE, rows=2)


def test_shapes_that_the_tiles_do_not_divide_are_refused():
    odd = kernels.Shape(dim=72, ffn_dim=128, head_dim=8, outputs=1024)
    with pytest.raises(ValueError, match="do not support"):
        kernels.check(kernels.TORCH, kernels.TORCH, CPU, torch.float32, odd, rows=2)


@pytest.mark.skipif(compiler.triton is not None, reason="Triton is installed")
def test_without_triton_pytorch_is_used_and_an_error_is_logged(caplog):
    kernels._log_once.cache_clear()
    for rows in (2, 4):
        chosen = kernels.choose(torch.device("cuda"), torch.float16, SHAPE, rows)
        assert chosen is kernels.TORCH
    [record] = caplog.records  # once for all sizes of batch
    assert record.levelname == "ERROR"
    assert "Triton is not installed" in record.message


def test_a_gpu_before_ampere_uses_cublas_and_a_warning_is_logged(monkeypatch, caplog):
    kernels._log_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(kernels, "check", lambda *arguments: None)
    chosen = kernels.choose(torch.device("cuda"), torch.float16, SHAPE, rows=2)
    assert "need compute capability 8.0" in caplog.text
    assert chosen.linear_add is kernels.TORCH.linear_add
    assert chosen.attention is kernels.TRITON.attention
