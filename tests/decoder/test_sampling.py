"""The samplers draw audiocraft's codes from the same noise, clip by clip and in a batch."""

import pytest
import torch
from audiocraft.utils.utils import multinomial, sample_top_k, sample_top_p

from musicgen.decoder.sampling import Sampling, SamplingRows, guide, sample, sample_each

K, CARD = 4, 500


def settings(*samplings):
    rows = SamplingRows.empty(len(samplings), torch.device("cpu"))
    for i, sampling in enumerate(samplings):
        rows.set(i, sampling, CARD)
    return rows


def noise(seed, clips=1):
    """The noise that `torch.multinomial` draws with the same seed, for one clip after another."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.empty(K, CARD).exponential_(1, generator=generator) for _ in range(clips)]
    )


def alike(logits):
    """Logits [B, K, card] repeated as both rows of a clip, so that guidance has no effect."""
    return logits.repeat_interleave(2, dim=0)


AUDIOCRAFT = {
    "top_k": (Sampling(top_k=250), lambda probs: sample_top_k(probs, 250)),
    "top_k_1": (Sampling(top_k=1), lambda probs: sample_top_k(probs, 1)),
    "no_limit": (Sampling(top_k=0), lambda probs: multinomial(probs, 1)),
    "top_p": (Sampling(top_p=0.7), lambda probs: sample_top_p(probs, 0.7)),
    "top_p_replaces_top_k": (Sampling(top_k=2, top_p=0.9), lambda p: sample_top_p(p, 0.9)),
    "tiny_top_p": (Sampling(top_p=1e-6), lambda probs: sample_top_p(probs, 1e-6)),
    "top_p_1": (Sampling(top_p=1.0), lambda probs: sample_top_p(probs, 1.0)),
    "temperature": (Sampling(temperature=0.6), lambda probs: sample_top_k(probs, 250)),
}


@pytest.mark.parametrize("sampler", [sample, sample_each])
@pytest.mark.parametrize("case", AUDIOCRAFT)
def test_codes_are_audiocrafts_for_the_same_draws(case, sampler):
    sampling, audiocraft = AUDIOCRAFT[case]
    for seed in range(40):
        torch.manual_seed(seed)
        logits = 3 * torch.randn(1, K, CARD)
        torch.manual_seed(seed)
        expected = audiocraft(torch.softmax(logits / sampling.temperature, dim=-1))
        codes = sampler(alike(logits), noise(seed), settings(sampling))
        assert torch.equal(codes, expected.squeeze(-1))


@pytest.mark.parametrize("sampler", [sample, sample_each])
def test_temperature_0_takes_the_most_probable_code(sampler):
    logits = torch.randn(2, K, CARD)
    codes = sampler(alike(logits), noise(0, clips=2), settings(*[Sampling(temperature=0.0)] * 2))
    assert torch.equal(codes, logits.argmax(-1))


def test_guidance_is_audiocrafts():
    cond, uncond = torch.randn(2, K, CARD), torch.randn(2, K, CARD)
    rows = settings(Sampling(cfg_coef=3.0), Sampling(cfg_coef=0.0))
    logits = torch.stack([cond, uncond], dim=1).flatten(0, 1)
    guided = guide(logits, rows.cfg_coef)
    assert torch.equal(guided[0], uncond[0] + (cond[0] - uncond[0]) * 3.0)
    assert torch.equal(guided[1], uncond[1])


@pytest.mark.parametrize("sampler", [sample, sample_each])
def test_each_clip_is_sampled_by_its_own_settings(sampler):
    samplings = [sampling for sampling, _ in AUDIOCRAFT.values()] + [Sampling(temperature=0.0)]
    logits = 3 * torch.randn(len(samplings), K, CARD)
    draws = noise(1, clips=len(samplings))
    together = sampler(alike(logits), draws, settings(*samplings))
    for i, sampling in enumerate(samplings):
        alone = sample(alike(logits[i : i + 1]), draws[i : i + 1], settings(sampling))
        assert torch.equal(together[i : i + 1], alone)


def test_top_k_above_card_means_no_limit():
    rows = settings(Sampling(top_k=5000), Sampling(top_k=0))
    assert rows.top_k.flatten().tolist() == [CARD, CARD]
