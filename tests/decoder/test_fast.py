"""The fast mode of the CPU: near the exact mode, and as independent of neighbours and threads."""

import pytest
import torch
from tiny_lm import CARD, MAX_LENGTH, STRIDE, clip, conditions, oracle_lm, tiny_config

from benchmarks import precision
from benchmarks.precision import Sequences
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM
from musicgen.decoder.pattern import interleave
from musicgen.decoder.state import State

CPU = {"device": "cpu", "dtype": torch.float32}
WIDE = 512  # more than a decoder that uses one thread


def fast_lm(config, threads=1, fast=True):
    state = oracle_lm(config, half=True).state_dict()
    return LM.from_audiocraft(config, state, threads=threads, fast=fast, **CPU)


def engine(lm, slots=4):
    return Engine(lm, max_length=MAX_LENGTH, stride=STRIDE, slots=slots, max_prefix=16)


def some_clips(config):
    return [
        clip(config, length=20, seed=1, text="1:5"),
        clip(config, length=33, seed=2, text="2:7", prompt=9, temperature=1.3),
        clip(config, length=12, seed=3, text="3:2", top_p=0.8),
        clip(config, length=MAX_LENGTH + 5, seed=4, text="4:9", cfg_coef=5.0),
    ]


@pytest.mark.parametrize("cross", [True, False])
def test_a_clip_does_not_depend_on_its_neighbours(cross):
    config = tiny_config(cross)
    lm, clips = fast_lm(config), some_clips(config)
    together = engine(lm).generate(clips)
    for one, codes in zip(clips, together, strict=True):
        assert torch.equal(engine(lm, slots=1).generate([one])[0], codes)


def test_a_clip_does_not_depend_on_the_number_of_threads():
    config = tiny_config(dim=WIDE, num_layers=1)
    lms = [fast_lm(config, threads) for threads in (1, 2)]
    assert [lm.team.threads for lm in lms] == [1, 2]
    clips = some_clips(config)
    one, two = (engine(lm).generate(clips) for lm in lms)
    assert all(map(torch.equal, one, two))


def test_weights_take_half_the_memory_and_so_do_keys_and_values():
    config = tiny_config()
    exact, fast = (fast_lm(config, fast=fast) for fast in (False, True))
    assert fast.heads.panels.nbytes == exact.heads.panels.nbytes / 2
    assert fast.heads.scales.nbytes <= fast.heads.panels.nbytes / 16
    assert State.slot_bytes(fast, 10, 0) == State.slot_bytes(exact, 10, 0) / 2


@pytest.mark.parametrize("cross", [True, False])
def test_distributions_are_near_those_of_the_exact_mode(cross):
    config = tiny_config(cross)
    lms = {mode: fast_lm(config, fast=mode == "fast") for mode in ("exact", "fast")}
    codes = [
        interleave(torch.randint(CARD, (config.n_q, 30)), config.delays, CARD) for _ in range(2)
    ]
    given = Sequences(torch.stack(codes), [conditions(config, text) for text in ("1:5", "2:5")])
    found = precision.compare("tiny", lms, given)
    assert 0 < found["kl"] < 0.01
    assert found["top1"] > 0.9
    same = precision.compare("tiny", {"exact": lms["exact"], "fast": lms["exact"]}, given)
    assert same["kl_by_codebook"] == [0] * config.n_q
    assert same["top1_by_codebook"] == [1] * config.n_q
    assert precision.table(found).count("\n| ") == config.n_q + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_devices_and_dtypes_have_no_fast_mode(dtype):
    state = oracle_lm(tiny_config()).state_dict()
    with pytest.raises(ValueError, match="fast mode needs float32 on a CPU"):
        LM.from_audiocraft(tiny_config(), state, device="cpu", dtype=dtype, fast=True)
