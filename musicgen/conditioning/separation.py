"""Removes drums and bass from a melody with Demucs.

Rouard et al. 2023, "Hybrid Transformers for Music Source Separation".
"""

from pathlib import Path

import torch
from demucs.apply import apply_model
from torch import Tensor

from musicgen.audio import convert_channels, resample
from musicgen.checkpoints.demucs_file import open_demucs

MELODY_STEMS = ("vocals", "other")  # without "drums" and "bass", as in audiocraft


class Separator:
    """The Demucs model of a file, on `device`, in fp32 as audiocraft runs it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.model = open_demucs(path).load().to(device)
        self.device = device
        self.sample_rate: int = self.model.samplerate

    def __call__(self, wav: Tensor, sample_rate: int) -> Tensor:
        """The sum of the melody's stems of wav [1, N], at the same `sample_rate`: [1, N'].

        Demucs' random shift is off: it would draw from Python's global generator.
        """
        mix = convert_channels(
            resample(wav, sample_rate, self.sample_rate), self.model.audio_channels
        )
        stems = apply_model(self.model, mix[None].to(self.device), shifts=0, device=self.device)
        picked = [self.model.sources.index(name) for name in MELODY_STEMS]
        melody = stems[0, picked].sum(0)
        return resample(convert_channels(melody, 1), self.sample_rate, sample_rate)
