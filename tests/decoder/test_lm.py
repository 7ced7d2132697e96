"""The decoder's logits equal audiocraft's; loading checks weights and packs them losslessly."""

from dataclasses import replace

import psutil
import pytest
import torch
from tiny_lm import CARD, conditions, engine_lm, oracle_lm, tiny_config

from musicgen.decoder import kernels
from musicgen.decoder.kernels.packed import Packed
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.pattern import interleave

SHAPES = {"cross": (True, 4), "prepend": (False, 4), "stereo": (False, 8)}


def forced_logits(lm, sequence, given, prompt):
    """Logits [2, K, S, card] of our decoder: `prompt` columns are prefilled, the others stepped."""
    length = sequence.shape[1]
    prefix = 0 if given.prefix is None else given.prefix.shape[1]
    cache = Cache.empty(lm, 2, prefix + length, 16)
    for _ in lm.prefill(sequence[:, :prompt].T, given.prefix, given.cross, cache):
        pass
    table = lm.positions(prefix + length)
    ops, logits = kernels.cpu_ops(lm.team) if lm.team else kernels.TORCH, []
    for column in range(prompt, length):
        positions = torch.full((2,), prefix + column)
        x = (lm.embed(sequence[:, column]) + table[prefix + column]).repeat(2, 1)
        step = lm.step(x, torch.arange(2), positions, cache, ops)
        logits.append(step.clone())
    return torch.stack(logits, dim=2)


def audiocraft_logits(oracle, sequence, given):
    fused = given.cross if given.prefix is None else given.prefix
    tensors = {"description": (fused, torch.ones(fused.shape[:2]))}
    with torch.no_grad():
        return oracle(sequence.expand(2, -1, -1), [], tensors)


def compare_logits(shape, prompt, frames):
    config = tiny_config(*SHAPES[shape])
    oracle = oracle_lm(config)
    given = conditions(config, "3:7")
    sequence = interleave(torch.randint(CARD, (config.n_q, frames)), config.delays, CARD)
    expected = audiocraft_logits(oracle, sequence, given)[:, :, prompt:]
    logits = forced_logits(engine_lm(oracle, config), sequence, given, prompt)
    assert expected.std() > 0.5  # flat logits would make the comparison meaningless
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("prompt", [0, 1, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_teacher_forced_logits_are_audiocrafts(shape, prompt):
    compare_logits(shape, prompt, frames=120)


@pytest.mark.full
@pytest.mark.parametrize("shape", SHAPES)
def test_teacher_forced_logits_are_audiocrafts_over_30_seconds(shape):
    compare_logits(shape, prompt=0, frames=1500)


def test_float16_weights_lose_nothing():
    """The logits are those of the same weights in float32, bit for bit."""
    config = tiny_config()
    oracle = oracle_lm(config, half=True)
    packed, wide = engine_lm(oracle, config), engine_lm(oracle, config)
    for part in (wide, *wide.layers):
        for name, weight in vars(part).items():
            if isinstance(weight, Packed):
                assert weight.panels.dtype == torch.float16
                setattr(part, name, replace(weight, panels=weight.panels.float()))
    assert wide.heads.panels.dtype == torch.float32
    given = conditions(config, "3:7")
    sequence = interleave(torch.randint(CARD, (4, 60)), config.delays, CARD)
    logits = [forced_logits(lm, sequence, given, 5) for lm in (packed, wide)]
    assert torch.equal(*logits)


def test_weights_that_float16_would_round_stay_float32():
    config = tiny_config()
    assert engine_lm(oracle_lm(config), config).heads.panels.dtype == torch.float32


def test_float16_checkpoints_are_packed_too():
    config = tiny_config()
    state = oracle_lm(config, half=True).half().state_dict()
    lm = LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)
    assert isinstance(lm.layers[0].qkv, Packed)
    assert torch.equal(
        lm.layers[0].up.dense(), state["transformer.layers.0.linear1.weight"].float()
    )
    assert lm.embeddings.dtype == torch.float32


def test_tensors_of_the_wanted_dtype_are_not_copied():
    config = tiny_config()
    state = oracle_lm(config).half().state_dict()
    lm = LM.from_audiocraft(config, state, device="cpu", dtype=torch.float16)
    ours, theirs = lm.layers[1].up, state["transformer.layers.1.linear1.weight"]
    assert ours.data_ptr() == theirs.data_ptr()


def test_a_cache_takes_memory_as_it_is_filled():
    config = tiny_config()
    lm = engine_lm(oracle_lm(config), config)
    process = psutil.Process()
    before = process.memory_info().rss
    cache = Cache.empty(lm, 64, 10_000, 0)
    cache.keys[..., 0, :] = 1  # the first position of every row, as by a step
    taken = process.memory_info().rss - before
    assert cache.keys.nbytes > 400e6
    assert taken < 0.1 * cache.keys.nbytes


def test_a_small_decoder_uses_one_thread_whatever_it_may_use():
    state = oracle_lm(tiny_config()).state_dict()
    options = {"device": "cpu", "dtype": torch.float32, "threads": 2}
    assert LM.from_audiocraft(tiny_config(), state, **options).team.threads == 1


def test_a_large_decoder_after_a_small_one_uses_all_threads():
    """Nothing that a small decoder sets outlives it, in this process or for other libraries."""
    before = torch.get_num_threads()
    engine_lm(oracle_lm(tiny_config()), tiny_config())
    config = tiny_config(dim=320, num_layers=1)
    state = oracle_lm(config).state_dict()
    large = LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32, threads=2)
    assert large.team.threads == 2
    assert torch.get_num_threads() == before


def test_conditioners_in_the_state_are_ignored():
    config = tiny_config()
    state = oracle_lm(config).state_dict()
    assert any(key.startswith("condition_provider.") for key in state)
    LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)


BROKEN = {
    "missing": ("transformer.layers.2.norm1.bias", lambda state, key: state.pop(key)),
    "unexpected": ("linears.0.bias", lambda state, key: state.update({key: torch.ones(1)})),
    "another shape": ("emb.1.weight", lambda state, key: state.update({key: torch.ones(3, 3)})),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_wrong_state_is_refused_by_the_key(problem):
    config = tiny_config()
    state = dict(oracle_lm(config).state_dict())
    key, damage = BROKEN[problem]
    damage(state, key)
    with pytest.raises(ValueError, match=f"'{key}' .*{problem}"):
        LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)
