"""Triton kernels against their PyTorch references, and steps made of them."""

from dataclasses import replace

import pytest
import torch
from tiny_lm import clip, oracle_lm, tiny_config

from musicgen.decoder import kernels, sampling
from musicgen.decoder.engine import Engine
from musicgen.decoder.kernels import attention, draw
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import Sampling, SamplingRows
from musicgen.decoder.state import State, decode_step

HALF, CPU = torch.float16, torch.device("cpu")
DIM, FFN, HEADS = 128, 192, 2
SHAPE = kernels.Shape(dim=DIM, ffn_dim=FFN, head_dim=DIM // HEADS, outputs=64)
# 20 rows have tiles of another size.
ROWS = [2, pytest.param(6, marks=pytest.mark.full), 20]


@pytest.mark.parametrize("rows", ROWS)
def test_kernels_agree_with_their_references(rows):
    kernels.check(kernels.TRITON, kernels.TORCH, CPU, HALF, SHAPE, rows)


@pytest.mark.parametrize("length", [1, 100, 128, 129, 300])
def test_attention_does_not_depend_on_the_capacity(length):
    q, rows, lengths = torch.randn(2, DIM).half(), torch.arange(2), torch.full((2,), length)
    capacity = 128 if length <= 128 else 300
    small = torch.randn(2, 2, HEADS, capacity, DIM // HEADS).half()
    large = torch.full((2, 2, HEADS, 128 * 17, DIM // HEADS), torch.nan, dtype=HALF)
    large[..., :capacity, :] = small
    expected = attention.attention_triton(q, *small, rows, lengths)
    assert torch.equal(attention.attention_triton(q, *large, rows, lengths), expected)


def settings(samplings, card):
    rows = SamplingRows.empty(len(samplings), CPU)
    for i, wanted in enumerate(samplings):
        rows.set(i, wanted, card)
    return rows


@pytest.mark.parametrize("card", [64, 300])
def test_sampling_draws_the_codes_of_its_reference(card):
    samplings = [
        Sampling(temperature=0.0),
        Sampling(top_k=1),
        Sampling(top_k=20, temperature=0.7),
        Sampling(top_k=0, cfg_coef=1.0),
        Sampling(top_k=5000, temperature=1.5),
    ] * 4
    rows = settings(samplings, card)
    logits, noise = torch.randn(2 * len(samplings), 4, card), torch.empty(20, 4, card)
    noise.exponential_()
    codes = draw.sample_triton(logits, noise, rows)
    assert torch.equal(codes, sampling.sample(logits, noise, rows))
    alone = draw.sample_triton(logits[4:6], noise[2:3], rows.pick(slice(2, 3)))
    assert torch.equal(codes[2:3], alone)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("wanted", [Sampling(), Sampling(top_p=0.5), Sampling(temperature=0.0)])
def test_codes_stay_in_range_if_logits_are_nan(wanted):
    """A code beyond the embedding table would be read out of bounds on a GPU."""
    card = 300
    logits, noise = torch.full((2, 4, card), torch.nan), torch.ones(1, 4, card)
    codes = draw.sample_triton(logits, noise, settings([wanted], card))
    assert codes.min() >= 0
    assert codes.max() < card


def test_top_p_keeps_the_codes_of_its_reference():
    """With the noise put in the order in which the reference, as audiocraft, uses it."""
    card, samplings = 300, [Sampling(top_p=p, top_k=2) for p in (1e-6, 0.3, 0.9, 0.9, 1.0)]
    rows = settings(samplings, card)
    logits, noise = torch.randn(10, 4, card), torch.empty(5, 4, card)
    noise.exponential_()
    order = sampling.guide(logits, rows.cfg_coef).softmax(-1).sort(-1, descending=True).indices
    codes = draw.sample_triton(logits, noise, rows)
    assert torch.equal(codes, sampling.sample(logits, noise.gather(-1, order), rows))


@pytest.fixture(scope="module", params=[True, False], ids=["cross", "prepend"])
def decoder(request):
    config = tiny_config(cross=request.param, dim=64, num_layers=1, card=64)
    config = replace(config, delays=(0, 0, 0, 1))  # few steps
    state = oracle_lm(config, half=True).state_dict()
    return LM.from_audiocraft(config, state, device="cpu", dtype=HALF)


def test_a_step_gives_the_codes_of_the_reference_step(decoder):
    states = []
    for ops in (kernels.TRITON, kernels.TORCH):
        state = State.empty(decoder, 2, 8, 4)
        for slot in range(2):
            state.sampling.set(slot, Sampling(temperature=0.0), decoder.config.card)
        state.sequence[:, :, 1:] = -1
        for _ in range(2):
            decode_step(decoder, ops, state, torch.tensor([1, 0, 1]))
        states.append(state)
    ours, references = states
    assert torch.equal(ours.sequence, references.sequence)
    assert (ours.cache.keys - references.cache.keys).abs().max() < 0.02


@pytest.mark.full  # test_order.py shows it for each kernel
@pytest.mark.parametrize("decoder", [True], ids=["cross"], indirect=True)
def test_codes_do_not_depend_on_the_other_clips_in_the_batch(decoder):
    engine = Engine(decoder, max_length=10, stride=6, slots=3, max_prefix=8, ops=kernels.TRITON)
    clips = [
        clip(decoder.config, length=1, seed=1),
        clip(decoder.config, length=2, seed=2, text="2:3", prompt=1, top_p=0.9),
    ]
    together = engine.generate(clips)
    for asked, codes in zip(clips, together, strict=True):
        assert torch.equal(engine.generate([asked])[0], codes)
