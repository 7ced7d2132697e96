"""Music with a known tempo."""

import numpy as np

RATE = 32000


def groove(bpm, seconds=12.0, late=0.3):
    """A kick on each beat, stronger on the first of four, a hat between, a chord: [N, 2]."""
    time = np.arange(round(seconds * RATE)) / RATE
    beats = np.arange(late, seconds, 60 / bpm)
    sound = 0.05 * np.sin(2 * np.pi * 220.5 * time) + 0.03 * np.sin(2 * np.pi * 277.3 * time)
    noise = np.random.default_rng(0).normal(size=RATE // 20)
    for index, beat in enumerate(beats):
        length = min(RATE // 4, len(time) - round(beat * RATE))
        tone = np.sin(2 * np.pi * 60 * time[:length]) * np.exp(-time[:length] * 18)
        at = round(beat * RATE)
        sound[at : at + length] += (0.8 if index % 4 == 0 else 0.4) * tone
        hat = round((beat + 30 / bpm) * RATE)
        part = noise[: max(0, len(time) - hat)]
        sound[hat : hat + len(part)] += 0.03 * part * np.exp(-np.arange(len(part)) / 300)
    return np.stack([sound, 0.9 * sound], 1).astype(np.float32)
