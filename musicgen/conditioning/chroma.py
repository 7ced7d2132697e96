"""Pitch classes over time: the melody that a MusicGen melody model follows.

The arithmetic is that of audiocraft's ChromaExtractor (modules/chroma.py) and of librosa's filter
bank (filters.chroma, after Ellis 2007), which audiocraft uses. librosa itself is not used because
its first call in a process compiles functions for seconds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

A0 = 27.5  # Hz
CENTRE_OCTAVE, OCTAVE_WIDTH = 5.0, 2.0  # Gaussian weight over octaves, counted from A0


def filter_bank(sample_rate: int, n_fft: int, n_chroma: int) -> Tensor:
    """Weight of every spectrum bin in every pitch class, C first: [n_chroma, n_fft // 2 + 1]."""
    hertz = torch.arange(1, n_fft, dtype=torch.float64) * sample_rate / n_fft
    octaves = torch.log2(hertz / A0)
    # Bin 0 has no pitch; librosa places it one and a half octaves below bin 1.
    octaves = torch.cat([octaves[:1] - 1.5, octaves])
    pitches = octaves * n_chroma
    widths = torch.cat([pitches.diff().clamp(min=1.0), pitches.new_ones(1)])
    distance = pitches - torch.arange(n_chroma, dtype=torch.float64)[:, None]
    half = round(n_chroma / 2)
    distance = torch.remainder(distance + half, n_chroma) - half
    weights = F.normalize(torch.exp(-0.5 * (2 * distance / widths) ** 2), dim=0)
    weights *= torch.exp(-0.5 * ((octaves - CENTRE_OCTAVE) / OCTAVE_WIDTH) ** 2)
    from_c = weights.roll(-3 * (n_chroma // 12), 0)
    return from_c[:, : n_fft // 2 + 1].float()


class Chroma(nn.Module):
    """wav [B, N] -> pitch classes [B, T, n_chroma], T = N // hop + 1, one frame per quarter window.

    With `argmax` each frame is one-hot.
    """

    bank: Tensor
    window: Tensor

    def __init__(
        self, sample_rate: int, n_chroma: int = 12, radix2_exp: int = 12, argmax: bool = False
    ) -> None:
        super().__init__()
        self.n_fft: int = 2**radix2_exp
        self.hop: int = self.n_fft // 4
        self.argmax = argmax
        self.register_buffer("bank", filter_bank(sample_rate, self.n_fft, n_chroma))
        self.register_buffer("window", torch.hann_window(self.n_fft))

    def frames(self, samples: int) -> int:
        """The number of frames of so many samples."""
        return max(samples, self.n_fft) // self.hop + 1

    def forward(self, wav: Tensor) -> Tensor:
        missing = self.n_fft - wav.shape[-1]
        if missing > 0:
            wav = F.pad(wav, (missing // 2, missing - missing // 2))
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = (spectrum / self.window.square().sum().sqrt()).abs().square()
        chroma = F.normalize(self.bank @ power, p=float("inf"), dim=1, eps=1e-6).mT
        if not self.argmax:
            return chroma
        return F.one_hot(chroma.argmax(-1), chroma.shape[-1]).to(chroma.dtype)
