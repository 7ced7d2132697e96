"""Results do not depend on the order of programs, on uninitialized memory, or on other rows."""

import random
from math import prod

import numpy as np
import pytest
import torch
from guarded import Guarded
from torch import nn
from triton.runtime import interpreter

from musicgen.decoder.kernels import attention, cuts, draw, fused
from musicgen.decoder.sampling import Sampling, SamplingRows

DIM, FFN, HEADS, CAPACITY = 128, 192, 2, 300
BOOKS, CARD = 4, 100
FULL = pytest.mark.full
SOME = {2, 20}  # rows for both forms of the LayerNorm
ROWS = [n if n in SOME else pytest.param(n, marks=FULL) for n in range(2, 66, 2)]


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    norm = nn.LayerNorm(DIM).requires_grad_(False)
    norm.weight += 0.1 * normal(DIM)
    norm.bias += 0.1 * normal(DIM)
    return norm, *((normal(n, d) / 8).half() for n, d in ((3 * DIM, DIM), (FFN, DIM), (DIM, FFN)))


def inputs(rows):
    """Inputs of every kernel; every other row shares half of its positions with the last row.

    Positions of the caches that must not be read are NaN.
    """
    generator = torch.Generator().manual_seed(rows)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    positions = (torch.arange(rows) * 53 + 290) % CAPACITY  # the first in a third split
    shared = positions // 2 * (torch.arange(rows) % 2)
    places = torch.arange(CAPACITY)
    absent = (places >= positions[:, None]) | (places < shared[:, None])
    keys, values = (
        normal(2, rows, HEADS, CAPACITY, DIM // HEADS)
        .half()
        .masked_fill(absent[:, None, :, None], torch.nan)
    )
    return {
        "x": normal(rows, DIM),
        "hidden": normal(rows, FFN).half(),
        "keys": keys,
        "values": values,
        "few_keys": keys[:, :, :100].nan_to_num(),
        "few_values": values[:, :, :100].nan_to_num(),
        "positions": positions,
        "shared": shared,
        "logits": normal(rows, BOOKS, CARD).half(),
        "noise": normal(rows, BOOKS, CARD)[::2].exp(),
    }


def outputs(weights, given):
    """The results of every kernel, tensors [R, ...]; the caches have the rows in reverse order."""
    with Guarded() as memory:
        norm, qkv, up, down = weights
        here = {name: memory.copy(tensor) for name, tensor in given.items()}
        x, hidden, positions = here["x"], here["hidden"], here["positions"]
        last = torch.ones(1, HEADS, CAPACITY, DIM // HEADS).cumsum(2).sin().half()
        keys, values = (
            memory.copy(torch.cat([here[name].flip(0), last])) for name in ("keys", "values")
        )
        rows = memory.copy(torch.arange(len(x)).flip(0))
        q = fused.norm_qkv(x, norm, qkv, keys, values, rows, positions)
        few = (memory.copy(here[name].flip(0)) for name in ("few_keys", "few_values"))
        residual = memory.copy(x)
        added = fused.linear_add(hidden, down, residual)
        settings = SamplingRows.empty(len(x) // 2, torch.device("cpu"))
        for clip in range(len(x) // 2):
            settings.set(clip, Sampling(top_k=20), CARD)
        return {
            "norm_qkv": q,
            "keys": keys[:-1].flip(0),
            "values": values[:-1].flip(0),
            # Float32, which shows the order of sums that rounding to float16 would hide.
            "attention": attention.attention_triton(
                q.float(), keys, values, rows, positions + 1, here["shared"]
            ),
            "attention in one split": attention.attention_triton(
                q, *few, rows, positions.clamp(max=99) + 1
            ),
            "norm_linear": fused.norm_linear(x, norm, up),
            "norm_linear with GELU": fused.norm_linear(x, norm, up, gelu=True),
            "norm_linear after linear_add": fused.norm_linear(added, norm, up),
            "linear_add": residual,
            "sample": draw.sample_triton(here["logits"], here["noise"], settings),
        }


def bits(tensor):
    """NaN is not equal to itself; its bits are."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.itemsize])


def assert_same(ours, theirs):
    for name, expected in theirs.items():
        assert torch.equal(bits(ours[name]), bits(expected)), name


@pytest.fixture
def shuffle(monkeypatch):
    """order([0, 1, ...]) -> in which order the programs of later launches run."""
    builder = interpreter.interpreter_builder
    set_dimensions, set_index = builder.set_grid_dim, builder.set_grid_idx

    def start(order):
        def dimensions(*grid):
            programs = order(list(range(prod(grid))))
            turns = iter([tuple(map(int, np.unravel_index(p, grid))) for p in programs])
            monkeypatch.setattr(builder, "set_grid_idx", lambda *_: set_index(*next(turns)))
            set_dimensions(*grid)

        monkeypatch.setattr(builder, "set_grid_dim", dimensions)

    return start


def backwards(programs):
    return programs[::-1]


def shuffled(programs):
    return random.Random(0).sample(programs, len(programs))


@pytest.mark.parametrize("rows", [20, *(pytest.param(rows, marks=FULL) for rows in (2, 6, 64))])
@pytest.mark.parametrize("order", [shuffled, pytest.param(backwards, marks=FULL)])
def test_the_order_of_programs_does_not_matter(weights, rows, order, shuffle):
    forwards = outputs(weights, inputs(rows))
    shuffle(order)
    assert_same(outputs(weights, inputs(rows)), forwards)


@pytest.fixture
def summed_alike(monkeypatch):
    """Replaces numpy's product, whose order of sums, unlike a GPU's, depends on the tile."""

    def matmul(a, b, dtype):
        return (a[:, :, None].astype(dtype) * b[None]).sum(axis=1)

    monkeypatch.setattr(np, "matmul", matmul)


def test_a_row_does_not_depend_on_how_products_are_cut(weights, monkeypatch, summed_alike):
    """With few processors and with many: wide programs, and programs that share rows."""
    few = outputs(weights, inputs(20))
    monkeypatch.setattr(cuts, "INTERPRETED", 128)
    assert cuts.cut(20, FFN, DIM, "gelu", torch.device("cpu")).rows < 20
    assert_same(outputs(weights, inputs(20)), few)


@pytest.mark.parametrize("rows", ROWS)
def test_a_row_does_not_depend_on_the_other_rows(weights, rows, summed_alike):
    given = inputs(rows)
    together = outputs(weights, given)
    for name in together.keys() - {"keys", "values"}:
        assert not together[name].isnan().any(), name
    for first in {0, rows // 4 * 2, rows - 2}:
        pair, clip = slice(first, first + 2), slice(first // 2, first // 2 + 1)
        alone = outputs(weights, {k: v[clip if k == "noise" else pair] for k, v in given.items()})
        assert_same({k: v[clip if k == "sample" else pair] for k, v in together.items()}, alone)


def test_every_kernel_is_among_them(weights, monkeypatch):
    started = set()
    run = interpreter.GridExecutor.__call__

    def call(executor, *args, **kwargs):
        started.add(executor.fn.__name__)
        return run(executor, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)
    for rows in (2, 6):  # norms of few rows and of many
        outputs(weights, inputs(rows))
    assert started == {k for module in (attention, draw, fused) for k in vars(module) if kernel(k)}


def kernel(name):
    return name.endswith("_kernel")
