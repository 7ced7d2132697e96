"""Conditions equal audiocraft's for the same prompt and melody."""

import logging

import oracle
import pytest
import sounds
import torch
from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

from musicgen.conditioning.conditioner import MAX_TOKENS

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"


@pytest.fixture(scope="module")
def references(checkpoints):
    return {kind: oracle.load(checkpoints[kind]) for kind in ("text", "stereo-melody")}


def reference_conditions(reference, prompt, melody=None):
    """audiocraft's fused conditions [2, L, dim]: conditional and unconditional."""
    wavs = None if melody is None else [melody]
    attributes, _ = reference._prepare_tokens_and_attributes([prompt], None, wavs)
    null = ClassifierFreeGuidanceDropout(p=1.0)(attributes)
    provider = reference.lm.condition_provider
    with oracle.unshifted, torch.no_grad():
        conditions = provider(provider.tokenize(attributes + null))
    # ConditionFuser puts each further condition before the earlier ones.
    parts = [embedding for embedding, _ in conditions.values()]
    return torch.cat(parts[::-1], dim=1)


@pytest.mark.parametrize("prompt", [PROMPT, "a", "🎹 ピアノ", "x " * 400])
def test_text_equals_audiocrafts(models, references, prompt):
    [conditions] = models["text"].conditioner(prompt, None, [0.0])
    expected = reference_conditions(references["text"], prompt)
    assert conditions.prefix is None
    if expected.shape[1] <= MAX_TOKENS[0]:
        assert torch.allclose(conditions.cross, expected, atol=1e-5)
    assert not conditions.cross[1].any()


def test_without_a_prompt_both_rows_are_unconditional(models, references):
    [conditions] = models["text"].conditioner(None, None, [0.0])
    assert torch.equal(conditions.cross, reference_conditions(references["text"], None))
    assert not conditions.cross.any()


@pytest.mark.parametrize("seconds", [1.0, 30.0])
@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_melody_equals_audiocrafts(models, references, prompt, seconds):
    wav = torch.from_numpy(sounds.melody(seconds, 32000, 1))
    [conditions] = models["stereo-melody"].conditioner(prompt, wav, [0.0])
    expected = reference_conditions(references["stereo-melody"], prompt, wav)
    assert conditions.prefix.shape == expected.shape
    assert torch.allclose(conditions.prefix, expected, atol=1e-4)


def test_melody_model_without_a_melody_equals_audiocrafts(models, references):
    [conditions] = models["stereo-melody"].conditioner(PROMPT, None, [0.0])
    expected = reference_conditions(references["stereo-melody"], PROMPT)
    assert torch.allclose(conditions.prefix, expected, atol=1e-5)


def test_a_melody_is_separated_once_for_all_windows(models, monkeypatch):
    conditioner = models["stereo-melody"].conditioner
    calls = []
    original = conditioner.melody.separate
    monkeypatch.setattr(
        conditioner.melody, "separate", lambda wav: calls.append(wav.shape) or original(wav)
    )
    wav = torch.from_numpy(sounds.melody(4.0, 32000, 1))
    wav[:, 64000:] = 0  # so that the windows that start at 0 s and 18 s differ
    conditions = conditioner(PROMPT, wav, [0.0, 18.0, 36.0])
    assert len(calls) == 1
    assert len(conditions) == 3
    assert not torch.equal(conditions[0].prefix[0], conditions[1].prefix[0])


def test_the_same_melody_gives_equal_bits(models):
    """By default, Demucs shifts its input by a number from Python's global generator."""
    wav = torch.from_numpy(sounds.melody(2.0, 32000, 1))
    first, second = (models["melody"].conditioner(None, wav, [0.0])[0].prefix for _ in range(2))
    assert torch.equal(first, second)


def test_a_long_prompt_is_truncated_and_logged(models, caplog):
    with caplog.at_level(logging.WARNING, "musicgen"):
        [conditions] = models["text"].conditioner("piano " * 1000, None, [0.0])
    assert conditions.cross.shape[1] == MAX_TOKENS[0]
    assert f"only the first {MAX_TOKENS[0]} are used" in caplog.text
