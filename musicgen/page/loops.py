"""Loops of whole bars: cut at measured downbeats, joined without a click, for samplers.

A loop ends where the music of its start would come again. Over the last milliseconds the end fades
into what comes before the start, so that the last sample is followed by its natural successor.
"""

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from musicgen import provenance
from musicgen.page.analysis import Floats
from musicgen.page.encoding import encode
from musicgen.page.prompts import BEATS_PER_BAR
from musicgen.runtime.librosa_import import librosa

HALVES_PER_BAR = 2 * BEATS_PER_BAR
BARS = (1, 2, 4, 8, 16)
TOLERANCE = 0.01  # of the asked tempo
OCTAVES = (0.5, 1.0, 2.0)  # beat trackers often report half or double the tempo
HOP_SECONDS = 0.005  # resolution of the beats
SEAM_SECONDS = 0.005
SEARCH_SECONDS = 0.02  # before a beat, for the place of the cut
BASS_HZ = 200.0  # below this, downbeats are accented
NAME = re.compile(r"loop-(\d+)-bars?\.wav")
# Of a sampler chunk: the MIDI note at which the loop has its own pitch, and "loop for ever".
UNITY_NOTE, FORWARD, FOR_EVER = 60, 0, 0


@dataclass(frozen=True)
class Loop:
    """A cut from sample `start` up to `stop`, of so many bars, and its tempo."""

    bars: int
    start: int
    stop: int
    tempo: float

    @property
    def length(self) -> str:
        """Its length in words."""
        return f"{self.bars} bar{'s' if self.bars > 1 else ''}"

    @property
    def kind(self) -> str:
        """The end of its file name."""
        return f"loop-{self.length.replace(' ', '-')}.wav"


@dataclass(frozen=True)
class Loops:
    """The loops of a clip, and its tempo as measured, 0 without a beat."""

    tempo: float
    asked: float | None
    found: tuple[Loop, ...]

    @property
    def fits(self) -> bool:
        """Whether a loop has the asked tempo, if there is one."""
        return any(self.has_tempo(loop) for loop in self.found)

    def has_tempo(self, loop: Loop) -> bool:
        """Whether a loop has the asked tempo, if there is one."""
        return not self.asked or _off(loop.tempo, self.asked) <= TOLERANCE


@lru_cache(maxsize=64)
def find(file: Path, asked: float | None) -> Loops:
    """The loops of an audio file, next to a tempo that was asked for."""
    samples, rate = soundfile.read(file, dtype=np.float32, always_2d=True)
    mono, hop = samples.mean(1), round(HOP_SECONDS * rate)
    if not mono.any():
        return Loops(0.0, asked, ())
    _, beats = librosa().beat.beat_track(
        y=mono, sr=rate, hop_length=hop, start_bpm=asked or 120.0, trim=False, units="samples"
    )
    if len(beats) <= BEATS_PER_BAR:
        return Loops(0.0, asked, ())
    places = np.arange(len(beats))
    tempo = 60 * rate / float(np.polyfit(places, beats, 1)[0])
    multiple = min(OCTAVES, key=lambda m: abs(np.log(tempo * m / asked))) if asked else 1.0
    tempo *= multiple
    # Trackers lock to off-beats as well, so every half beat may be a downbeat.
    halves = _between(_at_multiple(beats, multiple))
    starts = np.array([_quietest_step(samples, beat, rate) for beat in halves])
    phase = _downbeat(mono, rate, halves)
    cuts = (_cut(starts, phase, bars, asked, rate, len(mono)) for bars in BARS)
    return Loops(tempo, asked, tuple(cut for cut in cuts if cut))


def of_name(file: Path, asked: float | None, kind: str) -> Loop | None:
    """The loop of a file that has this end of a file name, or None."""
    if not NAME.fullmatch(kind):
        return None
    return next((loop for loop in find(file, asked).found if loop.kind == kind), None)


def samples(file: Path, loop: Loop) -> tuple[Floats, int]:
    """The samples [N, C] of a loop, and their rate."""
    whole, rate = soundfile.read(file, dtype=np.float32, always_2d=True)
    cut = whole[loop.start : loop.stop].copy()
    width = min(round(SEAM_SECONDS * rate), loop.start)
    # Equal power: the squares of both gains add up to 1.
    angle = np.linspace(0, np.pi / 2, width, dtype=np.float32)[:, None]
    before = whole[loop.start - width : loop.start]
    cut[-width:] = cut[-width:] * np.cos(angle) + before * np.sin(angle)
    return np.clip(cut, -1, 1), rate


def wav(file: Path, loop: Loop) -> bytes:
    """A loop as a 16-bit wav file with a sampler chunk, which marks all of it as a loop.

    Its tags say what made the clip, and that this is a part of it.
    """
    wave, rate = samples(file, loop)
    made = provenance.stated(file)
    content = encode(wave, rate, "wav", made and made.of_part(f"loop of {loop.length}"))
    period = round(1e9 / rate)  # nanoseconds
    sampler = struct.pack("<9I", 0, 0, period, UNITY_NOTE, 0, 0, 0, 1, 0)
    sampler += struct.pack("<6I", 0, FORWARD, 0, len(wave) - 1, 0, FOR_EVER)
    # After the other chunks. The first 8 bytes are "RIFF" and the size of the rest.
    body = content[8:] + b"smpl" + struct.pack("<I", len(sampler)) + sampler
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _off(tempo: float, asked: float) -> float:
    return abs(tempo / asked - 1)


def _at_multiple(beats: Floats, multiple: float) -> Floats:
    """Beats of half or double the tempo: each second one, or one more between two."""
    return {0.5: beats[::2], 1.0: beats, 2.0: _between(beats)}[multiple]


def _between(beats: Floats) -> Floats:
    """Beats and the middles between them."""
    return np.sort(np.concatenate([beats, (beats[:-1] + beats[1:]) // 2]))


def _quietest_step(samples: Floats, beat: int, rate: int) -> int:
    """The sample shortly before a beat, before which the wave of samples [N, C] changes least.

    At the beginning of the wave, where a seam needs room, it may be shortly after the beat.
    """
    width = round(SEARCH_SECONDS * rate)
    first = max(int(beat) - width, round(SEAM_SECONDS * rate) + 1)
    last = min(first + width, len(samples))
    if last <= first:
        return first
    steps = np.abs(np.diff(samples[first - 1 : last], axis=0)).max(1)
    return first + int(steps.argmin())


def _downbeat(mono: Floats, rate: int, halves: Floats) -> int:
    """The place in a bar of half beats where the onsets in the bass are strongest."""
    hop = round(HOP_SECONDS * rate)
    onsets = librosa().onset.onset_strength(y=mono, sr=rate, hop_length=hop, fmax=BASS_HZ, n_mels=8)
    frames = np.clip(np.round(halves / hop).astype(int), 0, len(onsets) - 1)
    strength = np.array([onsets[max(0, frame - 4) : frame + 5].max() for frame in frames])
    means = [strength[place::HALVES_PER_BAR].mean() for place in range(HALVES_PER_BAR)]
    return int(np.argmax(means))


def _cut(
    starts: Floats, phase: int, bars: int, asked: float | None, rate: int, total: int
) -> Loop | None:
    """The loop from a downbeat whose tempo is closest to the asked one, else the first one."""
    beats, halves = bars * BEATS_PER_BAR, bars * HALVES_PER_BAR
    loops = []
    for first in range(phase, len(starts) - halves, HALVES_PER_BAR):
        start, stop = int(starts[first]), int(starts[first + halves])
        if round(SEAM_SECONDS * rate) < start < stop <= total:
            loops.append(Loop(bars, start, stop, 60 * rate * beats / (stop - start)))
    if not loops:
        return None
    return min(loops, key=lambda loop: _off(loop.tempo, asked) if asked else 0.0)
