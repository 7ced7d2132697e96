"""Measures audio: mel spectrogram, chroma, beats and key by librosa, loudness by pyloudnorm.

Independent of the models and of the server, so that the measurements are unbiased.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicgen.runtime.librosa_import import librosa

Floats = NDArray[np.floating]

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
RATE = 22050  # Hz, to which input audio is resampled
MAX_SECONDS = 600.0  # of input audio that are read
MIN_SECONDS = 4.0  # needed by the filters of the lowest notes
BANDS = 96
RANGE = 80.0  # dB below the loudest bin that the spectrogram shows
CHROMA_WINDOW, CHROMA_HOP = 16384, 4096
# How well each pitch class fits a key (Krumhansl and Kessler 1982), from the tonic on.
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


@dataclass(frozen=True)
class Measurements:
    """The measurements of a recording: beats in seconds, keys with the most likely first, mel
    [bands, T] in dB below its loudest bin, chroma [12, T] from C. `tempo` is 0 without a beat."""

    seconds: float
    rate: int
    lufs: float
    tempo: float
    beats: Floats
    keys: tuple[str, ...]
    mel: Floats
    chroma: Floats


@lru_cache(maxsize=64)
def measure(file: Path) -> Measurements:
    """Measure a wav or mp3 file."""
    import soundfile

    samples, rate = soundfile.read(file, dtype=np.float32, always_2d=True)
    mono = samples.mean(1)
    tempo, beats = librosa().beat.beat_track(y=mono, sr=rate, units="time")
    power = librosa().feature.melspectrogram(y=mono, sr=rate, n_mels=BANDS)
    return Measurements(
        seconds=len(mono) / rate,
        rate=rate,
        lufs=level(samples, rate),
        tempo=float(np.ravel(tempo)[0]),
        beats=beats,
        keys=keys(mono, rate),
        mel=librosa().power_to_db(power, ref=max(power.max(), 1e-10), top_db=RANGE),
        chroma=chroma(mono, rate),
    )


def seconds(file: Path) -> float:
    """The length of a wav or mp3 file."""
    import soundfile

    return float(soundfile.info(file).duration)


def level(samples: Floats, rate: float) -> float:
    """LUFS of samples [N, C]; -inf if they are shorter than a gating block."""
    from pyloudnorm import Meter

    meter = Meter(rate)
    if len(samples) < meter.block_size * rate:
        return float("-inf")
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(samples))


def chroma(mono: Floats, rate: float) -> Floats:
    """Pitch classes over time [12, T] of mono [N], from C."""
    found: Floats = librosa().feature.chroma_stft(
        y=mono, sr=rate, n_fft=CHROMA_WINDOW, hop_length=CHROMA_HOP, tuning=0
    )
    return found


def keys(mono: Floats, rate: float) -> tuple[str, ...]:
    """All 24 keys, such as "A minor", the most likely first; none for silence."""
    mono = np.pad(mono, (0, max(0, round(MIN_SECONDS * rate) - len(mono))))
    heard = librosa().feature.chroma_cqt(y=mono, sr=rate, tuning=0).mean(1)
    if not heard.std():
        return ()
    likely = {
        f"{NOTES[tonic]} {mode}": np.corrcoef(np.roll(profile, tonic), heard)[0, 1]
        for mode, profile in PROFILES.items()
        for tonic in range(12)
    }
    return tuple(sorted(likely, key=lambda key: -likely[key]))


@lru_cache(maxsize=8)
def load_mono(file: Path, rate: int = RATE) -> Floats:
    """Audio of any format as mono [N] at `rate` Hz. Raises InputError if it cannot be read."""
    from musicgen.audio import load_slice

    wav = load_slice(file, 0.0, None, sample_rate=rate, channels=1, limit=MAX_SECONDS)
    mono: Floats = wav[0].numpy()
    return mono


def similarity(chroma: Floats, other: Floats) -> float:
    """Mean cosine similarity of the frames of two chromagrams [12, T], over the shorter one."""
    frames = min(chroma.shape[1], other.shape[1])
    a, b = chroma[:, :frames], other[:, :frames]
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(np.mean((a * b).sum(0) / np.maximum(lengths, 1e-9)))
