"""Synthesizes notes by additive synthesis and filtered noise, without recordings.

A sound always starts with the same phase and the same noise, so a note always has the same samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import butter, sosfilt

from training.song import FRAME_RATE, Note, Song

SAMPLE_RATE = 32000
FRAME = SAMPLE_RATE // FRAME_RATE
HIGHEST = 4500.0  # Hz, the highest partial
RELEASE = 2 * FRAME  # samples of a note's fade-out
LONGEST = 4.2  # seconds, the longest note
NOISE_SEED = 1
PARTS = ("drums", "bass", "chords", "lead")


@dataclass(frozen=True)
class Sound:
    """Partials (multiple of the pitch, amplitude) with an envelope."""

    partials: tuple[tuple[float, float], ...]
    attack: float  # seconds
    decay: float  # seconds to 1/e; higher partials decay faster
    gain: float = 1.0


def _saw(count: int, tilt: float = 1.0) -> tuple[tuple[float, float], ...]:
    return tuple((k, k**-tilt) for k in range(1, count + 1))


SOUNDS = {
    "piano": Sound(_saw(6, 1.6), 0.004, 0.7),
    "organ": Sound(((1, 1.0), (2, 0.6), (3, 0.35), (4, 0.2)), 0.012, 30.0, 0.6),
    "pad": Sound(((1, 1.0), (2, 0.25), (3, 0.1)), 0.08, 30.0, 0.75),
    "flute": Sound(((1, 1.0), (2, 0.2), (3, 0.06)), 0.04, 30.0),
    "bell": Sound(((1, 1.0), (2, 0.45), (3, 0.2), (4.2, 0.12)), 0.002, 0.8),
    "saw": Sound(_saw(6, 1.4), 0.008, 30.0, 0.7),
    "marimba": Sound(((1, 1.0), (4, 0.3)), 0.002, 0.25, 1.2),
    "bass": Sound(((1, 1.0), (2, 0.4), (3, 0.2)), 0.008, 0.8),
}
# Drum -> (noise band in Hz, seconds to 1/e, tone in Hz from and to, share of the tone).
DRUMS = {
    "kick": ((100, 1000), 0.07, (160.0, 48.0), 0.97),
    "snare": ((800, 6000), 0.06, (220.0, 180.0), 0.5),
    "clap": ((1000, 4000), 0.05, (1.0, 1.0), 0.0),
    "hat": ((6000, 12000), 0.018, (1.0, 1.0), 0.0),
    "soft hat": ((6000, 12000), 0.018, (1.0, 1.0), 0.0),
    "open hat": ((5500, 12000), 0.07, (1.0, 1.0), 0.0),
}
# Part or drum -> (level, channel: 1 the lead's, -1 the other).
# Each channel is encoded separately. Sounds in different channels have different codes, which makes
# them easier to learn for a small model.
MIX = {
    "kick": (0.4, -1),
    "bass": (0.15, -1),
    "chords": (0.075, -1),
    "lead": (0.16, 1),
    "snare": (0.22, 1),
    "clap": (0.22, 1),
    "hat": (0.1, 1),
    "soft hat": (0.06, 1),
    "open hat": (0.1, 1),
}


def render(
    song: Song, seconds: float, start: int = 0, parts: tuple[str, ...] = PARTS
) -> dict[str, np.ndarray]:
    """Returns the stems of the song from frame `start` on: each of `parts` [2, samples] float32."""
    first, length = start * FRAME, round(seconds * FRAME_RATE) * FRAME
    stems = {part: np.zeros((2, length), np.float32) for part in parts}
    for note in song.notes((first + length) / SAMPLE_RATE):
        if note.part not in parts:
            continue
        begin = note.frame * FRAME - first
        wave = _wave(note)[max(-begin, 0) : length - begin]
        if len(wave):
            begin = max(begin, 0)
            stems[note.part][:, begin : begin + len(wave)] += _gains(note, song) * wave
    return stems


def mix(stems: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the sum of all parts [2, samples], within full scale."""
    return np.clip(sum(stems.values()), -1, 1)


def _gains(note: Note, song: Song) -> np.ndarray:
    """Returns the gains [2, 1] of a note on the left and the right."""
    level, side = MIX[note.sound if note.part == "drums" else note.part]
    on_the_right = side * song.lead_side > 0
    return level * np.array([[not on_the_right], [on_the_right]], np.float32)


def _wave(note: Note) -> np.ndarray:
    if note.part == "drums":
        return _drum(note.sound)
    wave = _tone(note.sound, note.pitch)[: note.frames * FRAME + RELEASE].copy()
    wave[-RELEASE:] *= np.linspace(1, 0, RELEASE, dtype=np.float32) ** 2
    return wave


@lru_cache(maxsize=512)
def _tone(sound: str, pitch: int) -> np.ndarray:
    """Returns the sound held for the length of the longest note."""
    shape = SOUNDS[sound]
    time = np.arange(round(LONGEST * SAMPLE_RATE)) / SAMPLE_RATE
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    wave = np.zeros_like(time)
    for multiple, amplitude in shape.partials:
        if multiple * frequency < HIGHEST:
            fade = np.exp(-time / shape.decay * (1 + 0.3 * (multiple - 1)))
            wave += amplitude * fade * np.sin(2 * np.pi * multiple * frequency * time)
    rise = np.clip(time / shape.attack, 0, 1)
    return (shape.gain * rise * wave).astype(np.float32)


@lru_cache(maxsize=16)
def _drum(name: str) -> np.ndarray:
    band, decay, (high, low), share = DRUMS[name]
    time = np.arange(round(6 * decay * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(NOISE_SEED).standard_normal(len(time))
    noise = sosfilt(butter(2, band, "bandpass", fs=SAMPLE_RATE, output="sos"), noise)
    sweep = low + (high - low) * np.exp(-time / 0.025)
    tone = np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE)
    wave = share * tone + (1 - share) * noise / np.abs(noise).max()
    return (wave * np.exp(-time / decay)).astype(np.float32)
