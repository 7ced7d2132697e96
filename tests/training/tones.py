"""Sine tones for the tests."""

import numpy as np

from training.synth import SAMPLE_RATE


def tone(pitches, seconds=4.0):
    """Returns sines of these MIDI pitches, the same in both channels [2, N]."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = [440 * 2 ** ((pitch - 69) / 12) for pitch in pitches]
    return np.stack([sum(np.sin(2 * np.pi * f * time) for f in hertz)] * 2) / len(pitches)
