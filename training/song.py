"""Composes random songs as lists of notes.

Times are in beats until a note is placed, then in frames of the codec (20 ms). A beat is a whole
number of frames and every onset is on a frame, so the same bar gives the same codes at any
position. This changes a tempo by 3% at most.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

FRAME_RATE = 50
BEATS = 4  # of a bar
BARS = 4  # until the harmony repeats
LAST_BEAT = BEATS - 1  # of the last bar; a break or fill replaces it
TEMPOS = (60, 180)

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
SCALES = {"major": MAJOR, "minor": MINOR}
# Degrees of the scale, one per bar. All begin on the tonic, so that the key is audible.
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 5, 3, 6), (0, 6, 5, 6)),
}
LOWEST_BASS, LOWEST_CHORD, LOWEST_LEAD = 33, 54, 67  # MIDI: A1, F#3, G4
LEAD_RANGE = 17  # semitones

TURNS = ("plain", "break", "fill")  # break: all parts rest; fill: the drums roll
TURN_SHARES = (0.5, 0.3, 0.2)
SWINGING = 0.15  # share of the songs
SWUNG = 2 / 3  # start of a beat's second half in swing

CHORD_SOUNDS = ("piano", "organ", "pad")
LEAD_SOUNDS = ("flute", "bell", "saw", "marimba")


Event = tuple[str, str, int, float, float]  # part, sound, pitch, beat, beats


@dataclass(frozen=True)
class Style:
    """One bar of a genre: the beats of the drums, and those of bass and chord together."""

    drums: dict[str, tuple[float, ...]]
    strikes: tuple[float, ...]
    arpeggio: bool = False  # plays the chord's notes one after another


def _every(step: float, first: float = 0.0) -> tuple[float, ...]:
    return tuple(np.arange(first, BEATS, step).tolist())


ON_BEATS, OFF_BEATS, EIGHTHS, BETWEEN = _every(1), _every(1, 0.5), _every(0.5), _every(0.5, 0.25)
STYLES = {
    "house": Style({"kick": ON_BEATS, "clap": (1, 3), "open hat": OFF_BEATS}, OFF_BEATS),
    "techno": Style({"kick": ON_BEATS, "hat": OFF_BEATS}, EIGHTHS),
    "lofi": Style(
        {"kick": (0, 2.5), "snare": (1, 3), "hat": ON_BEATS, "soft hat": OFF_BEATS}, ON_BEATS
    ),
    "hip hop": Style({"kick": (0, 2.5), "snare": (1, 3), "hat": ON_BEATS}, (0, 2)),
    "rock": Style({"kick": (0, 2), "snare": (1, 3), "hat": EIGHTHS}, EIGHTHS),
    "funk": Style(
        {"kick": (0, 2, 3.5), "snare": (1, 3), "hat": EIGHTHS, "soft hat": BETWEEN},
        (0, 0.5, 2, 2.5),
    ),
    "pop": Style(
        {"kick": (0, 2), "clap": (1, 3), "hat": ON_BEATS, "soft hat": OFF_BEATS}, ON_BEATS
    ),
    "ambient": Style({}, EIGHTHS, arpeggio=True),
}
# Bars of the lead, as the beats of its onsets.
RHYTHMS = (
    (0, 1, 2, 3),
    (0, 1, 2),
    (0, 0.5, 1, 2, 3),
    (0, 1, 1.5, 2, 3),
    (0, 1, 2, 2.5, 3, 3.5),
    (0, 2, 3),
    (0, 0.5, 1, 1.5, 2, 3),
)


@dataclass(frozen=True)
class Note:
    """A note of `part`: MIDI pitch, first frame, length in frames. Drums have pitch 0."""

    part: str
    sound: str
    pitch: int
    frame: int
    frames: int


@dataclass(frozen=True)
class Song:
    """The random choices of a song; the same fields always give the same notes."""

    style: str
    tempo: int  # beats a minute
    tonic: int  # pitch class, 0 is C
    mode: str
    chord_sound: str
    lead_sound: str
    drums: bool
    lead_side: int  # -1 left, 1 right; bass and chords are on the other
    seed: int  # for progression and melody
    turn: str  # one of TURNS, for the last beat of four bars
    swing: bool

    @cached_property
    def scale(self) -> tuple[int, ...]:
        """Returns the pitch classes of the key, starting with its tonic."""
        return tuple((self.tonic + step) % 12 for step in SCALES[self.mode])

    @property
    def beat_frames(self) -> int:
        return round(60 / self.tempo * FRAME_RATE)

    def notes(self, seconds: float) -> list[Note]:
        """Returns every note that begins in the song's first `seconds`."""
        bars = int(np.ceil(seconds * FRAME_RATE / (BEATS * self.beat_frames)))
        loop = self._loop()
        placed = [self._place(bar, *event) for bar in range(bars) for event in loop[bar % BARS]]
        return [note for note in placed if note.frame < seconds * FRAME_RATE]

    @property
    def fills(self) -> bool:
        """Returns whether the song has a drum fill."""
        return self.turn == "fill" and self.drums and bool(STYLES[self.style].drums)

    def _place(
        self, bar: int, part: str, sound: str, pitch: int, beat: float, beats: float
    ) -> Note:
        start = bar * BEATS + beat
        first, last = (int(self._swung(when) * self.beat_frames) for when in (start, start + beats))
        return Note(part, sound, pitch, first, max(last - first, 1))

    def _swung(self, beat: float) -> float:
        """Returns the time at which the note written at `beat` is played."""
        whole, part = divmod(beat, 1)
        return whole + float(np.interp(part, (0, 0.5, 1), (0, SWUNG if self.swing else 0.5, 1)))

    def _loop(self) -> list[list[Event]]:
        """Returns the events of each bar, until the harmony repeats."""
        rng = np.random.default_rng(self.seed)
        style = STYLES[self.style]
        progression = PROGRESSIONS[self.mode][rng.integers(len(PROGRESSIONS[self.mode]))]
        rhythms = [RHYTHMS[i] for i in rng.integers(len(RHYTHMS), size=2)]
        lead_pitch = LOWEST_LEAD + int(rng.integers(LEAD_RANGE))
        bars = []
        for bar, degree in enumerate(progression):
            chord = [self.scale[(degree + step) % 7] for step in (0, 2, 4)]
            events = []
            voices = sorted(_above(pitch_class, LOWEST_CHORD) for pitch_class in chord)
            for index, span in enumerate(_spans(style.strikes)):
                events.append(("bass", "bass", _above(chord[0], LOWEST_BASS), *span))
                struck = [voices[(0, 1, 2, 1)[index % 4]]] if style.arpeggio else voices
                events += [("chords", self.chord_sound, pitch, *span) for pitch in struck]
            for beat, beats in _spans(rhythms[bar % 2]):
                choices = chord if beat == int(beat) else self.scale
                lead_pitch = _step(rng, lead_pitch, choices)
                events.append(("lead", self.lead_sound, lead_pitch, beat, beats))
            if self.drums:
                events += [
                    ("drums", drum, 0, beat, 1.0)
                    for drum, beats in style.drums.items()
                    for beat in beats
                ]
            bars.append(events)
        return [*bars[:-1], self._turned(bars[-1])]

    def _turned(self, bar: list[Event]) -> list[Event]:
        """Returns the last bar with its break or fill."""
        if self.turn == "break":
            return [
                (part, sound, pitch, beat, min(beats, LAST_BEAT - beat))
                for part, sound, pitch, beat, beats in bar
                if beat < LAST_BEAT
            ]
        if self.fills:
            drum = "clap" if "clap" in STYLES[self.style].drums else "snare"
            roll = [("drums", drum, 0, LAST_BEAT + step, 1.0) for step in (0, 0.25, 0.5, 0.75)]
            return [one for one in bar if one[0] != "drums" or one[3] < LAST_BEAT] + roll
        return bar


def draw(rng: np.random.Generator) -> Song:
    """Returns a random song; every choice is independent of the others."""

    def pick(options):  # numpy's choice would convert names to numpy strings
        return options[int(rng.integers(len(options)))]

    return Song(
        style=pick(tuple(STYLES)),
        tempo=int(rng.integers(TEMPOS[0], TEMPOS[1] + 1)),
        tonic=int(rng.integers(12)),
        mode=pick(tuple(SCALES)),
        chord_sound=pick(CHORD_SOUNDS),
        lead_sound=pick(LEAD_SOUNDS),
        drums=bool(rng.random() < 0.9),
        lead_side=pick((-1, 1, 1, 1)),
        seed=int(rng.integers(2**31)),
        turn=str(rng.choice(TURNS, p=TURN_SHARES)),
        swing=bool(rng.random() < SWINGING),
    )


def _above(pitch_class: int, lowest: int) -> int:
    return lowest + (pitch_class - lowest) % 12


def _spans(beats: tuple[float, ...]) -> list[tuple[float, float]]:
    """Returns (beat, length) of each note; it lasts until the next begins."""
    return [(a, b - a) for a, b in zip(beats, (*beats[1:], BEATS), strict=True)]


def _step(rng: np.random.Generator, pitch: int, classes) -> int:
    """Returns a random pitch of `classes` near `pitch`, in the lead's range."""
    span = range(LOWEST_LEAD, LOWEST_LEAD + LEAD_RANGE + 1)
    near = sorted(
        (p for p in span if p % 12 in classes and p != pitch), key=lambda p: abs(p - pitch)
    )
    return near[int(rng.integers(min(4, len(near))))]
