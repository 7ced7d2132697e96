"""The engine's codes equal audiocraft's, and do not depend on the clips in the same batch."""

from dataclasses import replace

import pytest
import torch
from tiny_lm import (
    MAX_LENGTH,
    STRIDE,
    clip,
    engine_lm,
    oracle_codes,
    oracle_lm,
    tiny_config,
)
from torch.utils._python_dispatch import TorchDispatchMode

from musicgen.decoder import kernels
from musicgen.decoder.clip import Conditions, Window, windows
from musicgen.decoder.engine import Engine
from musicgen.decoder.state import NOISE_STEPS, State, decode_step

SHAPES = {"cross": (True, 4), "prepend": (False, 4), "stereo": (False, 8), "cross8": (True, 8)}
CASES = {
    "top_k": {},
    "no_limit": {"top_k": 0},
    "top_k_above_card": {"top_k": 5000},
    "top_p": {"top_p": 0.8},
    "greedy": {"temperature": 0.0},
    "cool_and_strongly_guided": {"temperature": 0.7, "cfg_coef": 5.5, "top_k": 17},
    "prompt": {"prompt": 6},
    "prompt_greedy": {"prompt": 6, "temperature": 0.0},
    "windows": {"length": 70},
    "windows_greedy": {"length": 70, "temperature": 0.0},
    "windows_with_prompt": {"length": 100, "prompt": 13},
    "full_window": {"length": MAX_LENGTH},
    "one_frame": {"length": 1},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def models(request):
    config = tiny_config(*SHAPES[request.param])
    oracle = oracle_lm(config)
    return config, oracle, engine(engine_lm(oracle, config))


def engine(lm, **options):
    return Engine(lm, max_length=MAX_LENGTH, stride=STRIDE, max_prefix=16, **options)


@pytest.mark.parametrize("case", CASES)
def test_codes_are_audiocrafts(models, case):
    config, oracle, engine = models
    asked = clip(config, **CASES[case])
    codes = engine.generate([asked])[0]
    assert codes.dtype == torch.int64
    assert torch.equal(codes, oracle_codes(oracle, asked))


def mixed_clips(config):
    """Clips with different lengths, seeds, conditions, prompts and sampling settings."""
    return [
        clip(config, length=30, seed=1, text="1:5"),
        clip(config, length=30, seed=2, text="2:9", temperature=0.0, prompt=4),
        clip(config, length=90, seed=1, text="3:2", top_p=0.9, prompt=11),
        clip(config, length=7, seed=3, text="4:1", top_k=0, cfg_coef=1.0),
        clip(config, length=50, seed=4, text="1:5", temperature=1.3),
    ]


WEIGHTS = {
    "float32": (True, False),
    "float16 weights": (False, True),
}


@pytest.fixture(scope="module", params=WEIGHTS)
def mixed(request):
    """An engine, clips, and the codes of each clip decoded alone."""
    cross, half = WEIGHTS[request.param]
    config = tiny_config(cross=cross)
    made = engine(engine_lm(oracle_lm(config, half=half), config))
    clips = mixed_clips(config)
    return made, clips, [made.generate([one])[0] for one in clips]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [2, 2, 3], [1, 0]])
def test_codes_do_not_depend_on_the_other_clips_in_the_batch(mixed, order):
    made, clips, alone = mixed
    together = made.generate([clips[i] for i in order])
    assert all(torch.equal(codes, alone[i]) for codes, i in zip(together, order, strict=True))


def test_more_clips_than_slots_are_all_decoded(mixed):
    made, clips, alone = mixed
    together = made.generate([clips[3]] * 30 + [clips[0]] * 5)
    assert all(torch.equal(codes, alone[3]) for codes in together[:30])
    assert all(torch.equal(codes, alone[0]) for codes in together[30:])


def test_different_seeds_give_different_codes(mixed):
    made, clips, alone = mixed
    other = made.generate([replace(clips[0], seed=99)])[0]
    assert not torch.equal(other, alone[0])


def test_float16_weights_give_audiocrafts_greedy_codes():
    config = tiny_config()
    oracle = oracle_lm(config, half=True)
    asked = clip(config, length=60, temperature=0.0)
    assert torch.equal(
        engine(engine_lm(oracle, config)).generate([asked])[0], oracle_codes(oracle, asked)
    )


def steps_alone(made, one):
    job = made.submit(one)
    job.cancel()
    return job.steps


def test_progress_counts_every_step_once(mixed):
    made, clips, _ = mixed
    seen = []
    made.generate(clips, lambda done, total: seen.append((done, total)))
    total = sum(steps_alone(made, one) for one in clips)
    assert {of for _, of in seen} == {total}
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == total


def test_an_exception_from_progress_leaves_the_engine_usable(mixed):
    made, clips, alone = mixed

    def cancel(done, total):
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.generate(clips, cancel)
    assert torch.equal(made.generate([clips[0]])[0], alone[0])


def test_prompt_codes_of_the_caller_are_not_changed(mixed):
    made, clips, _ = mixed
    prompt = clips[2].prompt_codes.clone()
    made.generate([clips[2]])
    assert torch.equal(clips[2].prompt_codes, prompt)


class NoWaiting(TorchDispatchMode):
    """Fails on operations that make the host wait for a value on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in {"aten::_local_scalar_dense", "aten::nonzero"}, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_decode_step_does_not_wait_for_the_device(backend):
    config = tiny_config()
    lm = engine_lm(oracle_lm(config), config)
    ops = kernels.cpu_ops(lm.team) if backend == "cpu" else kernels.TORCH
    state = State.empty(lm, 3, 16, 4)
    with torch.no_grad(), NoWaiting():
        decode_step(lm, ops, state, torch.tensor([0, 2]))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        state.column[0].item()


def test_pytorch_operations_give_audiocrafts_codes():
    """The operations that CUDA uses without Triton, here on the CPU."""
    config = tiny_config()
    oracle = oracle_lm(config)
    made = engine(engine_lm(oracle, config), ops=kernels.TORCH)
    clips = [clip(config), clip(config, length=12, prompt=5, text="1:5", top_k=9)]
    for codes, asked in zip(made.generate(clips), clips, strict=True):
        assert torch.equal(codes, oracle_codes(oracle, asked))


def test_captured_steps_give_the_same_codes(mixed, monkeypatch):
    """As on CUDA, but on the CPU: batches of fixed sizes, noise for many steps."""
    made, clips, _ = mixed
    monkeypatch.setitem(NOISE_STEPS, "cpu", 32)
    alone = [engine(made.lm).generate([one])[0] for one in clips]
    static = engine(made.lm, slots=6, capture=True, eager=True)
    static.warm_up()
    assert list(static.decode_steps.captured) == [1, 2, 4, 6]
    for order in ([0], [0, 1, 2, 3, 4], [3, 1], [2]):
        together = static.generate([clips[i] for i in order])
        assert all(torch.equal(codes, alone[i]) for codes, i in zip(together, order, strict=True))


WINDOWS = {
    "one": ((0, 40), [(0, 40)]),
    "shorter": ((3, 10), [(0, 10)]),
    "two": ((0, 41), [(0, 40), (24, 41)]),
    "three": ((0, 80), [(0, 40), (24, 64), (48, 80)]),
    "prompt fills the first": ((55, 80), [(24, 64), (48, 80)]),
    "prompt of a whole window": ((40, 60), [(24, 60)]),
    "prompt fills all": ((60, 60), []),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_windows(case):
    (prompt, length), expected = WINDOWS[case]
    spans = windows(prompt, length, MAX_LENGTH, STRIDE)
    assert spans == [Window(start, stop) for start, stop in expected]


def test_a_prompt_longer_than_a_window_is_continued(mixed):
    """Audiocraft fails here. Only the part of the prompt inside the windows matters."""
    made, _, _ = mixed
    config = made.lm.config
    long = clip(config, length=80, prompt=55)
    codes = made.generate([long])[0]
    assert torch.equal(codes[:, :55], long.prompt_codes)
    cut = replace(long, length=80 - 24, prompt_codes=long.prompt_codes[:, 24:])
    assert torch.equal(codes[:, 24:], made.generate([cut])[0])


REFUSED = {
    "leaves nothing to decode": {"prompt": 20, "length": 20},
    "conditions for": {"length": 60},
    "cross-attention": {"conditions": [Conditions()]},
    "seed": {"seed": -1},
    "codebooks": {"prompt_codes": torch.zeros(3, 2, dtype=torch.long)},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_a_clip_that_cannot_be_decoded_is_refused(problem):
    config = tiny_config()
    made = engine(engine_lm(oracle_lm(config), config))
    changes = dict(REFUSED[problem])
    asked = clip(config, prompt=changes.pop("prompt", 0))
    with pytest.raises(ValueError, match=problem):
        made.generate([replace(asked, **changes)])
