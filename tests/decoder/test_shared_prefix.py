"""A shared prefix is computed and stored once, and does not change codes."""

import random
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
    vectors,
)

from musicgen.decoder import lm as decoder
from musicgen.decoder.clip import Conditions
from musicgen.decoder.engine import Engine

SHARED = 70  # longer than one piece of a prefill
TEXT = "1:75"
CASES = {
    "top_k": {},
    "greedy": {"temperature": 0.0, "length": 33},
    "prompt": {"prompt": 6},
    # The default seed has a near tie: audiocraft's own codes depend on its threads and on the CPU.
    "windows": {"length": 100, "prompt": 13, "top_p": 0.9, "seed": 8},
    "windows_greedy": {"length": 70, "temperature": 0.0},
}


def engine_of(lm, shared):
    return Engine(
        lm, max_length=MAX_LENGTH, stride=STRIDE, slots=4, max_prefix=96, shared_prefix=shared
    )


@pytest.fixture(scope="module")
def models():
    """audiocraft's decoder, and engines with and without a shared prefix."""
    config = tiny_config(cross=False, n_q=8)
    oracle = oracle_lm(config)
    lm = engine_lm(oracle, config)
    # The oracle's unconditional embedding is zeros.
    return config, oracle, engine_of(lm, torch.zeros(SHARED, config.dim)), engine_of(lm, None)


def guided(config, case):
    """A clip whose unconditional row begins with the shared prefix, as with a melody."""
    asked = clip(config, **CASES[case] | {"text": TEXT})
    return replace(asked, conditions=[replace(c, shared=(0, SHARED)) for c in asked.conditions])


def plain(config, case):
    """A clip whose rows both begin with the shared prefix, as without a melody."""
    text = vectors("3:9", config.dim)
    text = torch.stack([text, torch.zeros_like(text)])
    prefix = torch.cat([torch.zeros(2, SHARED, config.dim), text], dim=1)
    asked = clip(config, **CASES[case])
    conditions = Conditions(prefix=prefix, shared=(SHARED, SHARED))
    return replace(asked, conditions=[conditions] * len(asked.conditions))


def unshared(asked):
    return replace(asked, conditions=[replace(c, shared=(0, 0)) for c in asked.conditions])


@pytest.mark.parametrize("case", CASES)
def test_codes_are_audiocrafts(models, case):
    config, oracle, engine, _ = models
    asked = guided(config, case)
    assert torch.equal(engine.generate([asked])[0], oracle_codes(oracle, asked, TEXT))


@pytest.mark.parametrize("make", [guided, plain])
@pytest.mark.parametrize("case", CASES)
def test_codes_equal_those_of_an_engine_without_a_shared_prefix(models, make, case):
    config, _, engine, without = models
    asked = make(config, case)
    expected = without.generate([unshared(asked)])[0]
    assert torch.equal(engine.generate([asked])[0], expected)
    assert torch.equal(engine.generate([unshared(asked)])[0], expected)


def test_codes_do_not_depend_on_the_other_clips_in_the_batch(models):
    config, _, engine, _ = models
    clips = [make(config, case) for case in CASES for make in (guided, plain)]
    clips += [unshared(one) for one in clips[:2]]
    alone = [engine.generate([one])[0] for one in clips]
    chance, jobs = random.Random(2), []
    for _ in range(24):
        index = chance.randrange(len(clips))
        jobs.append((index, engine.submit(clips[index])))
        for _ in range(chance.randrange(15)):
            engine.step()
    while engine.busy:
        engine.step()
    assert all(torch.equal(job.result(), alone[index]) for index, job in jobs)


@pytest.mark.parametrize("make", [guided, plain])
def test_a_prefill_skips_the_shared_prefix(models, make, monkeypatch):
    config, _, engine, _ = models
    extend, seen = decoder.LM._extend, []

    def count(lm, x, *rest):
        seen.append(x.shape[0] * x.shape[1])
        extend(lm, x, *rest)

    monkeypatch.setattr(decoder.LM, "_extend", count)
    asked = make(config, "top_k")
    engine.generate([unshared(asked)])
    whole, seen[:] = sum(seen), []
    engine.generate([asked])
    assert whole - sum(seen) == sum(asked.conditions[0].shared) > 0


def test_the_cache_knows_how_much_of_the_shared_prefix_a_slot_uses(models):
    config, _, engine, _ = models
    lengths = engine.state.cache.shared_lengths
    for asked in (plain(config, "top_k"), guided(config, "windows"), clip(config)):
        engine.generate([asked])
        assert tuple(lengths[:2].tolist()) == asked.conditions[-1].shared


@pytest.mark.parametrize("shared", [(0, SHARED + 1), (-1, 0), (2, 1)])
def test_conditions_that_share_more_than_the_prefix_are_refused(models, shared):
    config, _, engine, _ = models
    asked = clip(config)
    asked = replace(asked, conditions=[replace(asked.conditions[0], shared=shared)])
    with pytest.raises(ValueError, match=f"share more than the {SHARED} positions"):
        engine.generate([asked])


def test_only_an_engine_with_a_shared_prefix_has_a_cache_row_for_it(models):
    _, _, engine, without = models
    assert engine.state.cache.keys.shape[1] == without.state.cache.keys.shape[1] + 1
    assert without.state.cache.shared_lengths is None
