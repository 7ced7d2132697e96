"""Kernels that are compiled in advance are those that a server asks for when it starts."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as Mode
from triton.backends.compiler import GPUTarget

from musicgen.decoder import decode_steps, prebuild
from musicgen.decoder.engine import Engine
from musicgen.decoder.kernels import cache_folder, compiler, draw, fused
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import SamplingRows
from musicgen.decoder.weights import LMConfig, decoder_shapes

CAPABILITY, PROCESSORS = 90, 132
TARGET = GPUTarget("cuda", CAPABILITY, 32)
MELODY = 10
BATCHES = (1, 6)  # for few kernels: a server with 5 slots has batches of 1 and 5
WITH_MELODY = LMConfig(
    dim=64,
    num_heads=4,
    num_layers=3,
    ffn_dim=256,
    n_q=4,
    card=2048,
    delays=(0, 1, 2, 3),
    cross_attention=False,
)
WITHOUT_MELODY = replace(WITH_MELODY, cross_attention=True)


@pytest.fixture(
    scope="module",
    params=[
        prebuild.Shapes(WITH_MELODY, 40, (20 + MELODY, 30 + MELODY), shared_prefix=True),
        pytest.param(
            prebuild.Shapes(WITHOUT_MELODY, 40, (140, 30), shared_prefix=False),
            marks=pytest.mark.full,
        ),
    ],
    ids=["melody", "text"],
)
def shapes(request):
    return request.param


@pytest.fixture(scope="module")
def prebuilt(shapes, tmp_path_factory):
    """The kernels of all servers with these shapes, in a folder that was moved since."""
    built, moved = (tmp_path_factory.mktemp("kernels") / name for name in ("built", "moved"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prebuild, "BATCHES", BATCHES)
        patch.setitem(prebuild.PROCESSORS, CAPABILITY, (PROCESSORS,))
        count = prebuild.prebuild(shapes, CAPABILITY, built)
    assert count == len(list(built.iterdir()))
    built.rename(moved)
    return moved


@pytest.fixture
def start(shapes, prebuilt, tmp_path, monkeypatch, caplog):
    """A function that starts a server's decoder on a fake GPU: the kernels compiled and the log."""
    own, copy = tmp_path / "own", tmp_path / "prebuilt"
    shutil.copytree(prebuilt, copy)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(own))
    monkeypatch.setenv("MUSICGEN_PREBUILT_KERNELS", str(copy))
    monkeypatch.setattr(decode_steps, "BATCHES", BATCHES)
    cache_folder.requested.clear()
    cache_folder.ensure_usable.cache_clear()
    caplog.set_level(logging.INFO)

    def run(slots=5, limit=0):
        with triton.knobs.cache.scope(), prebuild.fake_gpu(TARGET, PROCESSORS):
            warm_up(shapes, slots, shapes.prefixes[limit], monkeypatch)
        files = [path for path in own.rglob("*.json") if not path.name.startswith("__grp__")]
        return sorted(path.stem for path in files), caplog.messages[-1]

    yield run, copy
    cache_folder.ensure_usable.cache_clear()


def warm_up(shapes, slots, prefix, monkeypatch):
    """What `Engine.warm_up` does, without its trial: kernels are compiled in threads."""
    monkeypatch.setattr(
        decode_steps, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=fake_tensors)
    )
    monkeypatch.setattr(FakeTensor, "pin_memory", lambda tensor: tensor, raising=False)
    state = {
        name: torch.empty(shape, device=prebuild.CUDA)
        for name, shape in decoder_shapes(shapes.config).items()
    }
    lm = LM.from_audiocraft(shapes.config, state, device=prebuild.CUDA, dtype=torch.float16)
    melody = torch.empty(MELODY, shapes.config.dim, device=prebuild.CUDA)
    engine = Engine(
        lm,
        max_length=shapes.max_length,
        stride=20,
        slots=slots,
        max_prefix=prefix,
        shared_prefix=melody if shapes.shared_prefix else None,
        eager=True,  # a graph cannot be captured without a GPU
    )
    engine.decode_steps.capture_all()


def fake_tensors():
    """Let a thread of a pool make fake tensors too."""
    Mode(allow_non_fake_inputs=True).__enter__()
    torch.set_grad_enabled(False)


@pytest.mark.parametrize(("slots", "limit"), [(5, 0), (4, 1), (6, 0), (1, 0)])
def test_a_server_compiles_nothing_whatever_the_number_of_its_slots(start, slots, limit):
    run, _ = start
    compiled, said = run(slots, limit)
    assert compiled == []
    assert said.endswith(" from the cache, 0 compiled")
    assert not said.startswith("Triton kernels: 0")
    assert set(cache_folder.requested.values()) == {False}


def test_real_tensors_find_what_was_compiled_for_fake_ones(start, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", prebuild._Driver(TARGET))
    clips, n_q, card = 5, 4, 2048
    logits = torch.zeros(2 * clips, n_q, card, dtype=torch.float16)
    noise, rows = torch.ones(clips, n_q, card), SamplingRows.empty(clips, torch.device("cpu"))
    settings = rows.top_k, rows.top_p, rows.temperature, rows.cfg_coef
    codes = torch.zeros(clips, n_q, dtype=torch.int64)
    with triton.knobs.cache.scope():
        cache_folder.ensure_usable()
        found = draw._sample_kernel.warmup(
            logits, noise, *settings, codes, n_q, card, BLOCK=card, num_warps=8,
            grid=(clips, n_q), **compiler.launch(torch.device("cpu")),
        )  # fmt: skip
    assert found.asm["cubin"]
    assert list(cache_folder.requested.values()) == [False]


def test_a_kernel_without_an_entry_is_compiled(start):
    run, copy = start
    [entry] = copy.glob("*/_sample_kernel.json")
    shutil.rmtree(entry.parent)
    compiled, said = run()
    assert compiled == ["_sample_kernel"]
    assert said.endswith(" from the cache, 1 compiled")


def test_an_entry_that_was_not_completely_written_is_not_used(start):
    run, copy = start
    [entry] = copy.glob("*/__grp___sample_kernel.json")
    entry.unlink()
    assert run()[0] == ["_sample_kernel"]


def test_a_kernel_whose_source_changed_is_compiled(start, monkeypatch):
    run, _ = start
    kernel = draw._sample_kernel
    before = kernel.src
    kernel._unsafe_update_src(before.replace("greedy = heat == 0.0", "greedy = heat <= 0.0"))
    try:
        assert kernel.src != before
        assert run()[0] == ["_sample_kernel"]
    finally:
        kernel._unsafe_update_src(before)


def test_a_kernel_with_another_option_is_compiled(start, monkeypatch):
    run, _ = start
    monkeypatch.setattr(fused, "NORM_WARPS", 4)
    assert set(run()[0]) == {"_norm_kernel"}


def test_kernels_that_cannot_be_compiled_are_an_error(shapes, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_KERNELS", "torch")
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        prebuild.prebuild(shapes, CAPABILITY, tmp_path)
