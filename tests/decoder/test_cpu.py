"""The CPU's operations: exact, and no row depends on other rows or on the number of threads."""

import gc
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.work import PUBLISHED
from musicgen.commands.server import ROOT
from musicgen.decoder import kernels
from musicgen.decoder.kernels import attention
from musicgen.decoder.kernels.intrinsics import HALF_LOADS, half_conversions
from musicgen.decoder.kernels.layout import DEPTH_BLOCK, LARGEST_INT8, LARGEST_INT16
from musicgen.decoder.kernels.program import Then

FULL = pytest.mark.full
THREADS = [1, 2]
MOST_ROWS = 64
# Widths that panels do and do not divide; depths of less and more than one block of the depth.
SIZES = [(64, 64), (300, 256), (1200, 101), (40, 1100)]


def published_products():
    """(N, D) of every matrix of every published decoder."""
    shapes = set()
    for config in PUBLISHED.values():
        d, f = config.dim, config.ffn_dim
        shapes |= {(3 * d, d), (2 * d, d), (d, d), (f, d), (d, f), (config.n_q * config.card, d)}
    return sorted(shapes)


def size_params(sizes, short):
    return [size if size in short else pytest.param(size, marks=FULL) for size in sizes]


@pytest.fixture(scope="module", params=THREADS)
def team(request):
    return kernels.cpu_team(request.param)


def product(team, weight, x, then=Then.STORE, y=None):
    inputs = (x,) if y is None else (x, y)
    ops = kernels.cpu_ops(team)
    return ops.replay(lambda ops, x, y=None: ops.linear(x, weight, then, y), inputs)


PACKERS = {"float16": kernels.pack, "float32": kernels.pack, "int8": kernels.quantize}
by_stored_dtype = pytest.mark.parametrize("stored", PACKERS)


def random_weight(size, stored, team):
    """A random matrix in panels of this dtype."""
    matrix = random_matrix(*size, torch.float32 if stored == "float32" else torch.float16)
    weight = PACKERS[stored](matrix, team)
    assert weight.panels.dtype == getattr(torch, stored)
    return weight


def random_matrix(width, depth, dtype):
    matrix = torch.randn(width, depth) / math.sqrt(depth)
    return matrix.half().float() if dtype == torch.float16 else matrix


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_exact_to_float32_rounding(team, size, dtype):
    matrix, x = random_matrix(*size, dtype), torch.randn(7, size[1])
    weight = kernels.pack(matrix, team)
    assert weight.panels.dtype == dtype
    assert torch.equal(weight.dense(), matrix)
    exact = x.double() @ matrix.double().T
    # The bound of a sum of products that are added in order, each rounded once.
    bound = size[1] * 2.0**-24 * (x.abs().double() @ matrix.abs().double().T)
    assert ((product(team, weight, x) - exact).abs() <= bound).all()


@pytest.mark.parametrize("matrix_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_matrices_of_any_dtype_are_packed_without_loss(team, matrix_dtype):
    matrix = torch.randn(50, 30).bfloat16().to(matrix_dtype)
    assert torch.equal(kernels.pack(matrix, team).dense(), matrix.float())


@pytest.mark.parametrize("matrix_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_int8_weights_are_the_nearest_multiples_of_their_scale(team, size, matrix_dtype):
    matrix = random_matrix(*size, torch.float32).to(matrix_dtype)
    matrix[0] = 0
    weight = kernels.quantize(matrix, team)
    assert weight.panels.abs().max() == LARGEST_INT8
    blocks = list(matrix.float().split(DEPTH_BLOCK, dim=1))
    scales = torch.stack([block.abs().amax(1) for block in blocks], 1) / LARGEST_INT8
    found = weight.scales.transpose(1, 2).reshape(-1, len(blocks))[: size[0]]
    torch.testing.assert_close(found, scales, rtol=1e-6, atol=0)
    allowed = scales.repeat_interleave(DEPTH_BLOCK, 1)[:, : size[1]] * (0.5 + 1e-4)
    assert ((weight.dense() - matrix.float()).abs() <= allowed).all()


@pytest.mark.parametrize("size", SIZES)
def test_products_of_int8_weights_are_exact_for_rows_rounded_to_int16(team, size):
    weight, x = random_weight(size, "int8", team), torch.randn(7, size[1])
    x[2] = 0
    blocks = [round_to_int16(block) for block in x.double().split(DEPTH_BLOCK, dim=1)]
    dense = weight.dense().double()
    exact = torch.cat([nearest for nearest, _ in blocks], 1) @ dense.T
    # Both scales, their product, a block's sum and the addition of a block round once each. So does
    # `dense`. A number in the middle of two int16 may go to either.
    bound = 8 * len(blocks) * 2.0**-24 * (x.abs().double() @ dense.abs().T)
    bound += torch.cat([between for _, between in blocks], 1) @ dense.abs().T
    assert ((product(team, weight, x) - exact).abs() <= bound).all()


def round_to_int16(x):
    """x, each row rounded to 16 bits; and what is between the two nearest, where it is midway."""
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / LARGEST_INT16
    steps = x / scale
    midway = ((steps - steps.floor()) - 0.5).abs() < 0.01
    return steps.round() * scale, scale * midway


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_product_of_int8_weights_hides_no_number_that_is_not_finite(team, wrong):
    weight, x = random_weight((40, 300), "int8", team), torch.randn(3, 300)
    x[1, 270] = wrong
    found = product(team, weight, x).isfinite()
    assert found[[0, 2]].all()
    assert not found[1].any()


@by_stored_dtype
@pytest.mark.parametrize("size", [*SIZES, *size_params(published_products(), {(3072, 1024)})])
def test_a_row_of_a_product_does_not_depend_on_the_number_of_rows(team, size, stored):
    """To the last bit; a difference would change only one code in many thousands."""
    weight = random_weight(size, stored, team)
    x = torch.randn(MOST_ROWS, size[1])
    together = product(team, weight, x)
    for rows in range(1, MOST_ROWS):
        assert torch.equal(product(team, weight, x[:rows]), together[:rows]), rows
    assert torch.equal(product(team, weight, x[17:40]), together[17:40])


@by_stored_dtype
@pytest.mark.parametrize("size", [*SIZES, *size_params(published_products(), {(1024, 4096)})])
def test_a_product_does_not_depend_on_the_number_of_threads(size, stored):
    x, matrix = torch.randn(10, size[1]), random_matrix(*size, torch.float16)
    one, two = (
        product(team, PACKERS[stored](matrix, team), x) for team in map(kernels.cpu_team, THREADS)
    )
    assert torch.equal(one, two)


@pytest.mark.slow
def test_code_from_the_cache_computes_the_bits_of_code_that_was_just_compiled(tmp_path):
    """Otherwise a server's first start after an installation would give other music."""
    digest = [sys.executable, Path(__file__).with_name("digest.py")]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    compiled, cached = (
        json.loads(
            subprocess.run(digest, env=environment, check=True, stdout=subprocess.PIPE).stdout
        )
        for _ in range(2)
    )
    assert compiled == cached


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "features"), [("haswell", "+avx2,+fma,+f16c"), ("nehalem", "+sse4.2")]
)
def test_processors_without_these_instructions_compute_as_exactly(name, features, tmp_path):
    """The code for older processors, on this one: the tests of this file again."""
    processor = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **processor}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__]
    subprocess.run(command, env=environment, check=True)


def test_a_product_can_be_added_to_a_residual(team):
    matrix, x, residual = torch.randn(100, 64), torch.randn(9, 64), torch.randn(9, 100)
    weight = kernels.pack(matrix, team)
    expected = residual + product(team, weight, x)
    assert torch.equal(product(team, weight, x, Then.ADD, residual), expected)


def test_gelu_is_exact_to_float32_rounding(team):
    """At least as near to the exact function as torch's."""
    x = torch.linspace(-9, 9, 64 * 2000).view(-1, 64)
    identity = kernels.pack(torch.eye(64), team)
    ours = product(team, identity, x, Then.GELU)
    exact = F.gelu(x.double())
    scale = x.abs().clamp_min(1e-3)
    error = ((ours - exact) / scale).abs().max()
    assert error < 1.3e-7
    assert error <= ((F.gelu(x) - exact) / scale).abs().max()


def test_layer_norm_is_torchs(team):
    norm = nn.LayerNorm(200).requires_grad_(False)
    norm.weight.add_(0.1 * torch.randn(200))
    norm.bias.add_(0.1 * torch.randn(200))
    x, identity = 3 * torch.randn(5, 200) + 1, kernels.pack(torch.eye(200), team)
    ops = kernels.cpu_ops(team)
    ours = ops.replay(lambda ops, x: ops.norm_linear(x, norm, identity), (x,))
    assert (ours - norm(x)).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_agrees_with_its_reference(team, dtype):
    q, keys, values = torch.randn(4, 64), torch.randn(6, 4, 50, 16), torch.randn(6, 4, 50, 16)
    keys, values = keys.to(dtype), values.to(dtype)
    rows, lengths = torch.tensor([5, 4, 0, 1]), torch.tensor([50, 50, 3, 3])
    ops = kernels.cpu_ops(team)

    def attend(count):
        def record(ops, q, rows, lengths):
            return ops.attention(q, keys, values, rows, lengths)

        return ops.replay(record, (q[count], rows[count], lengths[count])).clone()

    found = attend(slice(4))
    expected = attention.attention(q, keys.float(), values.float(), rows, lengths)
    assert (found - expected).abs().max() < 1e-6
    assert torch.equal(attend(slice(2, 4)), found[2:])


def test_float16_caches_get_the_nearest_keys_and_values(team):
    x, norm = 3 * torch.randn(4, 64), nn.LayerNorm(64).requires_grad_(False)
    weight = kernels.pack(torch.randn(3 * 64, 64), team)
    rows, positions = torch.tensor([2, 0, 1, 3]), torch.tensor([5, 0, 49, 5])
    wide, narrow = (torch.zeros(2, 4, 4, 50, 16, dtype=t) for t in (torch.float32, torch.float16))

    def record(caches):
        return lambda ops, *inputs: ops.norm_qkv(inputs[0], norm, weight, *caches, *inputs[1:])

    for caches in (wide, narrow):
        kernels.cpu_ops(team).replay(record(caches), (x, rows, positions))
    assert wide.abs().sum() > 0
    assert torch.equal(wide.half(), narrow)


@pytest.mark.parametrize("instructions", [True, False])
def test_float16_numbers_are_converted_as_by_torch(instructions):
    """With and without the processor's instructions for it."""
    float_of_half, half_of_float = half_conversions(instructions and HALF_LOADS)

    @numba.njit
    def convert(bits, floats, to_floats, to_bits):
        for i in range(len(bits)):
            to_floats[i] = float_of_half(bits[i])
        for i in range(len(floats)):
            to_bits[i] = half_of_float(floats[i])

    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    sizes = torch.tensor([1.0, 1e-3, 1e-6, 1e-8, 1e5]).repeat_interleave(100_000)
    random = torch.Generator().manual_seed(0)
    values = torch.cat(
        [
            sizes * torch.randn(500_000, generator=random),
            torch.from_numpy(bits.view(np.float16)).float(),
        ]
    )
    found = np.empty(len(bits), np.float32), np.empty(len(values), np.uint16)
    convert(bits, values.numpy(), *found)
    assert np.array_equal(found[0], bits.view(np.float16).astype(np.float32))
    assert np.array_equal(found[1], values.half().numpy().view(np.uint16))


def test_a_recording_is_replayed_with_other_inputs(team):
    ops, weight = kernels.cpu_ops(team), kernels.pack(torch.randn(40, 30), team)
    recorded = []

    def function(ops, x):
        recorded.append(x)
        return ops.linear(x, weight)

    for _ in range(3):
        x = torch.randn(2, 30)
        assert torch.equal(ops.replay(function, (x,), key="x"), product(team, weight, x))
    assert len(recorded) == 1


def test_the_threads_of_a_decoder_end_with_it():
    before = set(threading.enumerate())
    team = kernels.cpu_team(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del team
    gc.collect()
    for helper in helpers:
        helper.join()
