"""What is measured of audio: how alike two recordings are, tempo, key, melody, a seam.

Beats and chroma are librosa's: no code of the model that is judged.
"""

import librosa
import numpy as np
import torch

from train_demo import codec
from train_demo.captions import SHARP
from train_demo.song import SCALES
from train_demo.synth import SAMPLE_RATE

OCTAVES = (0.5, 1.0, 2.0)
TEMPO_TOLERANCE = 0.05
SIZES = (2048, 1024, 512)
RANGE = 80.0  # dB below a clip's loudest bin; what is quieter counts as silence
CHROMA_WINDOW, CHROMA_HOP = 16384, 4096
# How well each pitch class fits a key (Krumhansl and Kessler 1982), from the tonic on.
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


def log_spectral_distance(wav: np.ndarray, other: np.ndarray) -> float:
    """Mean over resolutions and frames of the root mean square difference in dB of [N] and [N]."""
    found = []
    for size in SIZES:
        levels = [
            _levels(x, size, np.abs(librosa.stft(wav, n_fft=size)).max()) for x in (wav, other)
        ]
        found.append(np.sqrt(np.mean((levels[0] - levels[1]) ** 2, axis=0)).mean())
    return float(np.mean(found))


def _levels(wav: np.ndarray, size: int, full: float) -> np.ndarray:
    amplitudes = np.abs(librosa.stft(wav, n_fft=size)) / full
    return 20 * np.log10(np.maximum(amplitudes, 10 ** (-RANGE / 20)))


def si_sdr(wav: np.ndarray, other: np.ndarray) -> float:
    """Scale-invariant ratio of signal to distortion of `other` [N] in dB (Le Roux et al. 2019)."""
    pair = (torch.from_numpy(signal)[None, None] for signal in (wav, other))
    return codec.si_sdr(*pair).item()


def tempo(wav: np.ndarray) -> float:
    """Beats a minute that librosa's beat tracker finds in wav [C, N]; 0 if none."""
    return float(np.ravel(librosa.beat.beat_track(y=wav.mean(0), sr=SAMPLE_RATE)[0])[0])


def is_tempo(found: float, wanted: float) -> bool:
    """Whether two tempos agree within 5%, or within 5% of half or double."""
    return any(abs(found * factor / wanted - 1) <= TEMPO_TOLERANCE for factor in OCTAVES)


def chroma(wav: np.ndarray) -> np.ndarray:
    """Pitch classes over time [12, frames] of wav [C, N], C first."""
    return librosa.feature.chroma_stft(
        y=wav.mean(0), sr=SAMPLE_RATE, n_fft=CHROMA_WINDOW, hop_length=CHROMA_HOP, tuning=0
    )


def keys(wav: np.ndarray) -> list[str]:
    """All 24 keys, the most likely first: "A minor"."""
    heard = librosa.feature.chroma_cqt(y=wav.mean(0), sr=SAMPLE_RATE, tuning=0).mean(1)
    likely = {
        f"{SHARP[tonic]} {mode}": np.corrcoef(np.roll(PROFILES[mode], tonic), heard)[0, 1]
        for mode in SCALES
        for tonic in range(12)
    }
    return sorted(likely, key=lambda key: -np.nan_to_num(likely[key], nan=-1.0))


def chroma_similarity(wav: np.ndarray, other: np.ndarray) -> float:
    """Mean cosine of the chroma frames of [C, N] and [C', N], from 0 to 1."""
    a, b = chroma(wav), chroma(other)
    frames = min(a.shape[1], b.shape[1])
    a, b = a[:, :frames], b[:, :frames]
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(np.mean((a * b).sum(0) / np.maximum(lengths, 1e-9)))


def seam(wav: np.ndarray, sample: int, reach: int = 32) -> float:
    """Largest step between samples around `sample`, over the 99.9th percentile of wav's [C, N]."""
    steps = np.abs(np.diff(wav, axis=1)).max(0)
    return float(steps[sample - reach : sample + reach].max() / np.percentile(steps, 99.9))
