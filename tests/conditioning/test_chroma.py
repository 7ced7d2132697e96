"""Pitch classes equal audiocraft's, which uses librosa's filter bank."""

import pytest
import sounds
import torch
from audiocraft.modules.chroma import ChromaExtractor

from musicgen.conditioning.chroma import Chroma

SETTINGS = [
    {"sample_rate": 32000, "n_chroma": 12, "radix2_exp": 14, "argmax": True},
    {"sample_rate": 32000, "n_chroma": 12, "radix2_exp": 12},
    {"sample_rate": 16000, "n_chroma": 24, "radix2_exp": 11},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("samples", [1, 1000, 32000, 320001])
def test_chroma_equals_audiocrafts(settings, samples):
    ours, reference = Chroma(**settings), ChromaExtractor(**settings)
    torch.testing.assert_close(ours.bank, reference.fbanks, rtol=0, atol=1e-7)
    tune = torch.from_numpy(sounds.melody(samples / 32000, 32000, 1))
    for wav in (tune, torch.zeros(1, samples)):
        torch.testing.assert_close(ours(wav), reference(wav), rtol=1e-5, atol=1e-6)


def test_a_sine_gives_its_pitch_class():
    time = torch.arange(64000) / 32000
    for pitch, hertz in ((0, 261.63), (4, 329.63), (9, 440.0)):
        chroma = Chroma(32000, radix2_exp=14, argmax=True)(torch.sin(time * hertz * 6.28319)[None])
        assert (chroma.argmax(-1) == pitch).all()
