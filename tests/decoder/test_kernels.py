"""The tables of operations, and the Triton kernels by way of Triton's interpreter.

Triton is imported without a GPU only if it is told so beforehand, so the tests that need it are
runs of their own: interpreted/ and compiled/.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicgen.decoder import kernels
from musicgen.decoder.kernels import attention, compiled, compiler, products

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


def test_kernels_agree_with_their_twins_in_tritons_interpreter():
    run_with_triton("interpreted", "1")


def test_kernels_compile_without_a_gpu():
    run_with_triton("compiled", "0")


@pytest.mark.full
def test_kernels_of_every_model_compile_for_every_gpu():
    run_with_triton("compiled", "0", "-m", "full")


def test_masked_and_sliced_operations_agree():
    kernels.check(kernels.cpu_ops(), kernels.TORCH, CPU, torch.float32, SHAPE, rows=2)


@pytest.mark.parametrize("pack", [products.pack_float16, products.pack_int8, torch.Tensor.clone])
@pytest.mark.parametrize("depth", [64, 256])
def test_no_row_of_a_product_depends_on_how_many_there_are(pack, depth):
    """To the last bit, which a code shows once in many thousands."""
    x, weight = torch.randn(64, depth), pack(torch.randn(192, depth))
    pairs = torch.cat([products.linear_rows(pair, weight) for pair in x.split(2)])
    for rows in range(2, 66, 2):
        assert torch.equal(products.linear_rows(x[:rows], weight), pairs[:rows]), rows


def test_a_wrong_operation_is_found():
    wrong = kernels.Ops(
        **vars(kernels.TORCH) | {"linear_add": lambda x, weight, residual: residual}
    )
    with pytest.raises(ArithmeticError, match="linear_add"):
        kernels.check(wrong, kernels.TORCH, CPU, torch.float32, SHAPE, rows=2)


def test_shapes_that_no_tile_divides_have_no_kernels():
    odd = kernels.Shape(dim=72, ffn_dim=128, head_dim=8, outputs=1024)
    with pytest.raises(ValueError, match="no kernels"):
        kernels.check(kernels.TORCH, kernels.TORCH, CPU, torch.float32, odd, rows=2)


def test_cpu_has_its_own_operations():
    assert kernels.choose(CPU, torch.float32, SHAPE, rows=2) is kernels.cpu_ops()


@pytest.mark.skipif(compiler.triton is not None, reason="Triton is at hand")
def test_without_triton_a_warning_and_pytorch():
    with pytest.warns(UserWarning, match="Triton is not installed"):
        chosen = kernels.choose(torch.device("cuda"), torch.float16, SHAPE, rows=2)
    assert chosen is kernels.TORCH


def test_a_gpu_without_tensor_cores_for_triton_has_other_products(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(kernels, "check", lambda *arguments: None)
    with pytest.warns(UserWarning, match="this GPU is old"):
        chosen = kernels.choose(torch.device("cuda"), torch.float16, SHAPE, rows=2)
    assert chosen.linear_add is kernels.TORCH.linear_add
    assert chosen.attention is kernels.TRITON.attention


@pytest.mark.parametrize("parallel", [False, True])
def test_compiled_attention_agrees_with_its_twin_on_any_number_of_threads(parallel, monkeypatch):
    monkeypatch.setattr(compiled, "_attend", compiled.compiled(compiled.attend, parallel))
    monkeypatch.setattr(compiled, "PARALLEL", parallel)
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    q, keys, values = torch.randn(4, 64), torch.randn(6, 4, 50, 16), torch.randn(6, 4, 50, 16)
    rows, lengths = torch.tensor([5, 4, 0, 1]), torch.tensor([50, 50, 3, 3])
    found = compiled.attention_numba(q, keys, values, rows, lengths)
    expected = attention.attention(q, keys, values, rows, lengths)
    assert (found - expected).abs().max() < 1e-6
    alone = compiled.attention_numba(q[2:], keys, values, rows[2:], lengths[2:])
    assert torch.equal(alone, found[2:])
