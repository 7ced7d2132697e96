"""The delay pattern equals audiocraft's."""

import pytest
import torch
from tiny_lm import DELAYS

from musicgen.decoder.pattern import deinterleave, interleave, num_columns
from musicgen.rendering.audiocraft import DelayedPatternProvider


@pytest.mark.parametrize("n_q", DELAYS)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_sequence_is_audiocrafts(n_q, frames):
    codes = torch.randint(50, (n_q, frames))
    provider = DelayedPatternProvider(n_q, delays=list(DELAYS[n_q]))
    expected, _, _ = provider.get_pattern(frames).build_pattern_sequence(codes[None], 50)
    sequence = interleave(codes, DELAYS[n_q], 50)
    assert torch.equal(sequence, expected[0])
    assert sequence.shape[1] == num_columns(frames, DELAYS[n_q])


@pytest.mark.parametrize("n_q", DELAYS)
@pytest.mark.parametrize("frames", [0, 1, 9])
def test_deinterleave_undoes_interleave(n_q, frames):
    codes = torch.randint(50, (n_q, frames))
    sequence = interleave(codes, DELAYS[n_q], 50)
    assert torch.equal(deinterleave(sequence, DELAYS[n_q], frames), codes)


def test_wrong_number_of_codebooks_is_refused():
    with pytest.raises(ValueError, match="4 codebooks"):
        interleave(torch.zeros(4, 3, dtype=torch.long), DELAYS[8], 50)
