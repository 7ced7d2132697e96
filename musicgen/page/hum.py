"""Synthesizes the hummed melody of the page's example from sine waves."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 32000
BEAT = 0.5  # seconds: 120 bpm
# A minor: MIDI note, beats.
TUNE = ((69, 1), (72, 1), (76, 1), (74, 0.5), (72, 0.5), (71, 1), (67, 1), (69, 2))
GLIDE = 0.04  # seconds from note to note, since a voice does not jump
VIBRATO = 5.5, 0.12  # Hz, semitones
HARMONICS = (1.0, 0.35, 0.12, 0.05)


def write(path: Path) -> Path:
    """Write the melody to a wav file of 4 s; its path."""
    pitch = np.concatenate([np.full(round(beats * BEAT * RATE), note) for note, beats in TUNE])
    time = np.arange(len(pitch)) / RATE
    width = round(GLIDE * RATE)
    padded = np.pad(pitch.astype(float), (width, width), "edge")
    pitch = np.convolve(padded, np.ones(width) / width, "same")[width:-width]
    rate, depth = VIBRATO
    pitch = pitch + depth * np.sin(2 * np.pi * rate * time)
    phase = 2 * np.pi * np.cumsum(440 * 2 ** ((pitch - 69) / 12)) / RATE
    wave = sum(level * np.sin(k * phase) for k, level in enumerate(HARMONICS, start=1))
    soundfile.write(path, 0.4 * wave * _breath(len(time)), RATE)
    return path


def _breath(samples: int) -> np.ndarray:
    """An envelope [samples] from 0 to 1 that dips at the start of each note."""
    envelope = np.ones(samples)
    start = 0
    for _, beats in TUNE:
        length = round(beats * BEAT * RATE)
        rise = np.minimum(np.arange(length) / (0.05 * RATE), 1)
        fall = np.minimum(np.arange(length)[::-1] / (0.08 * RATE), 1)
        envelope[start : start + length] = rise * fall
        start += length
    return envelope
