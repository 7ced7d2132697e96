"""Measures of audio: distances of recordings and of sets, tempo, key, melody, seams.

Beats, chroma and keys are computed by librosa, independently of the model that is evaluated.
"""

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import torch

from musicgen.page import analysis
from musicgen.runtime.librosa_import import librosa
from training import distance
from training.synth import FRAME, SAMPLE_RATE

OCTAVES = (0.5, 1.0, 2.0)
TEMPO_TOLERANCE = 0.05
SIZES = (2048, 1024, 512)
RANGE = 80.0  # dB below a clip's loudest bin; quieter bins count as silence
QUIETEST = 0.005  # share of a set's frames that define its floor; songs seldom rest
SILENCE = -120.0  # dBFS, the lowest possible floor
HATS = (6000.0, 12000.0)  # Hz
MEL_BANDS, MEL_WINDOW = 64, 2048


def log_spectral_distance(wav: np.ndarray, other: np.ndarray) -> float:
    """Returns the RMS difference of spectra in dB, averaged over resolutions and frames."""
    found = []
    for size in SIZES:
        levels = [
            _levels(x, size, np.abs(librosa().stft(wav, n_fft=size)).max()) for x in (wav, other)
        ]
        found.append(np.sqrt(np.mean((levels[0] - levels[1]) ** 2, axis=0)).mean())
    return float(np.mean(found))


def _levels(wav: np.ndarray, size: int, full: float) -> np.ndarray:
    amplitudes = np.abs(librosa().stft(wav, n_fft=size)) / full
    return 20 * np.log10(np.maximum(amplitudes, 10 ** (-RANGE / 20)))


def si_sdr(wav: np.ndarray, other: np.ndarray) -> float:
    """Returns the scale-invariant signal-to-distortion ratio of `other` in dB (Le Roux 2019)."""
    pair = (torch.from_numpy(signal)[None, None] for signal in (wav, other))
    return distance.si_sdr(*pair).item()


def floor(wavs: Iterable[np.ndarray]) -> float:
    """Returns the mean power in dB of the quietest 20 ms frames of a set of wavs [C, N]."""
    sides = [side[: len(side) // FRAME * FRAME].reshape(-1, FRAME) for wav in wavs for side in wav]
    power = np.sort(np.square(np.concatenate(sides)).mean(1))
    quiet = power[: max(1, round(QUIETEST * len(power)))].mean()
    return float(10 * np.log10(max(quiet, 10 ** (SILENCE / 10))))


def hats(wavs: Iterable[np.ndarray]) -> float:
    """Returns the mean power in dB of wavs [C, N] in the hats' band, summed over channels."""
    found = []
    for wav in wavs:
        power = np.square(np.abs(np.fft.rfft(wav))) * 2 / wav.shape[1] ** 2
        hertz = np.fft.rfftfreq(wav.shape[1], 1 / SAMPLE_RATE)
        found.append(power[:, (hertz >= HATS[0]) & (hertz < HATS[1])].sum())
    return float(10 * np.log10(np.mean(found) + 1e-20))


def frechet_distance(wavs: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """Returns the Fréchet distance of two sets of wavs [C, N], over log-mel frames in 10 dB.

    Each set is modelled as a Gaussian (Heusel et al. 2017, Kilgour et al. 2019). The mel spectrum
    of each channel replaces the embedding of a trained network.
    """
    (mean, cov), (mean_2, cov_2) = (_gaussian(set_) for set_ in (wavs, others))
    root = scipy.linalg.sqrtm(cov @ cov_2).real
    return float(np.square(mean - mean_2).sum() + np.trace(cov + cov_2 - 2 * root))


def _gaussian(wavs: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [MEL_BANDS] and the covariance of the frames."""
    power = [
        librosa().feature.melspectrogram(
            y=side, sr=SAMPLE_RATE, n_fft=MEL_WINDOW, hop_length=MEL_WINDOW, n_mels=MEL_BANDS
        )
        for wav in wavs
        for side in wav
    ]
    frames = librosa().power_to_db(np.concatenate(power, axis=1), amin=10 ** (-RANGE / 10)) / 10
    return frames.mean(1), np.cov(frames)


def tempo(wav: np.ndarray) -> float:
    """Returns the beats per minute that librosa finds in wav [C, N]; 0 if none."""
    return float(np.ravel(librosa().beat.beat_track(y=wav.mean(0), sr=SAMPLE_RATE)[0])[0])


def is_tempo(found: float, wanted: float) -> bool:
    """Returns whether two tempos agree within 5%, or one with half or double the other."""
    return any(abs(found * factor / wanted - 1) <= TEMPO_TOLERANCE for factor in OCTAVES)


def keys(wav: np.ndarray) -> tuple[str, ...]:
    """Returns all 24 keys of wav [C, N], most likely first ("A minor"); none for silence."""
    return analysis.keys(wav.mean(0), SAMPLE_RATE)


def chroma_similarity(wav: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean cosine of the chroma frames of [C, N] and [C', N], from 0 to 1."""
    return analysis.similarity(*(analysis.chroma(x.mean(0), SAMPLE_RATE) for x in (wav, other)))


def seam(wav: np.ndarray, sample: int, reach: int = 32) -> float:
    """Returns the largest step around `sample`, relative to the 99.9th percentile of all steps."""
    steps = np.abs(np.diff(wav, axis=1)).max(0)
    return float(steps[sample - reach : sample + reach].max() / np.percentile(steps, 99.9))
