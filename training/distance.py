"""Distances between two signals: the codec's training loss, and SI-SDR."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.synth import FRAME

SILENCE = -100.0  # dBFS


@dataclass(frozen=True)
class Loss:
    """A weighted sum of differences: samples, spectral amplitudes, their logarithms, and levels.

    `levels` weighs each dB of the level of 20 ms. `floor` is the amplitude below which a spectrum
    counts as silent; a full-scale sine has 0.5.
    """

    windows: tuple[int, ...]
    floor: float
    samples: float
    amplitudes: float
    logarithms: float
    levels: float = 0.0

    def __call__(self, wav: Tensor, other: Tensor) -> Tensor:
        """Returns the distance of `other` [B, 1, N] from `wav`, relative to `wav`."""
        total = self.samples * (wav - other).abs().mean() / wav.abs().mean()
        for size in self.windows:
            a, b = spectrum(wav, size), spectrum(other, size)
            amplitudes = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a)
            logarithms = F.l1_loss((a + self.floor).log(), (b + self.floor).log())
            weighted = self.amplitudes * amplitudes + self.logarithms * logarithms
            total = total + weighted / len(self.windows)
        return total + self.levels * F.l1_loss(level(wav), level(other))


def level(wav: Tensor) -> Tensor:
    """Returns the mean power in dB of each 20 ms of wav [B, 1, N]; SILENCE for silence."""
    return 10 * (F.avg_pool1d(wav.square(), FRAME) + 10 ** (SILENCE / 10)).log10()


def spectrum(wav: Tensor, size: int) -> Tensor:
    """Returns amplitudes [B, size / 2 + 1, frames] of wav [B, 1, N]; a full-scale sine has 0.5."""
    window = torch.hann_window(size, device=wav.device)
    bins = torch.stft(wav[:, 0], size, size // 4, window=window / window.sum(), return_complex=True)
    # The gradient of a square root is infinite at 0.
    return (bins.real.square() + bins.imag.square() + 1e-14).sqrt()


def si_sdr(wav: Tensor, other: Tensor) -> Tensor:
    """Returns the scale-invariant signal-to-distortion ratio (Le Roux 2019) of each wav in dB."""
    wav, other = (x - x.mean(-1, keepdim=True) for x in (wav, other))
    scale = (wav * other).sum(-1, keepdim=True) / wav.square().sum(-1, keepdim=True)
    error = other - scale * wav
    return 10 * ((scale * wav).square().sum((1, 2)) / error.square().sum((1, 2))).log10()
