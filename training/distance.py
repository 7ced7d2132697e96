"""How far one sound is from another, as a loss and as a figure."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.synth import FRAME

SILENCE = -100.0  # dBFS


@dataclass(frozen=True)
class Loss:
    """What a difference costs: in samples, in the amplitudes of spectra, in their logarithms, and
    in each dB of the level of 20 ms.

    `floor` is the amplitude below which a spectrum is silent; a full-scale sine has 0.5.
    """

    windows: tuple[int, ...]
    floor: float
    samples: float
    amplitudes: float
    logarithms: float
    levels: float = 0.0

    def __call__(self, wav: Tensor, other: Tensor) -> Tensor:
        """How far `other` [B, 1, N] is from `wav`, relative to it."""
        total = self.samples * (wav - other).abs().mean() / wav.abs().mean()
        for size in self.windows:
            a, b = spectrum(wav, size), spectrum(other, size)
            apart = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a)
            logarithms = F.l1_loss((a + self.floor).log(), (b + self.floor).log())
            weighted = self.amplitudes * apart + self.logarithms * logarithms
            total = total + weighted / len(self.windows)
        return total + self.levels * F.l1_loss(level(wav), level(other))


def level(wav: Tensor) -> Tensor:
    """Mean power in dB of each 20 ms of wav [B, 1, N], of silence SILENCE."""
    return 10 * (F.avg_pool1d(wav.square(), FRAME) + 10 ** (SILENCE / 10)).log10()


def spectrum(wav: Tensor, size: int) -> Tensor:
    """Amplitudes [B, size / 2 + 1, frames] of wav [B, 1, N]; a full-scale sine gives 0.5."""
    window = torch.hann_window(size, device=wav.device)
    bins = torch.stft(wav[:, 0], size, size // 4, window=window / window.sum(), return_complex=True)
    # The root of nothing has no slope.
    return (bins.real.square() + bins.imag.square() + 1e-14).sqrt()


def si_sdr(wav: Tensor, other: Tensor) -> Tensor:
    """Scale-invariant ratio of signal to distortion (Le Roux 2019) of each of [B, 1, N] in dB."""
    wav, other = (x - x.mean(-1, keepdim=True) for x in (wav, other))
    scale = (wav * other).sum(-1, keepdim=True) / wav.square().sum(-1, keepdim=True)
    error = other - scale * wav
    return 10 * ((scale * wav).square().sum((1, 2)) / error.square().sum((1, 2))).log10()
