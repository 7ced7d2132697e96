"""What was made in one visit of the page, and what was asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen.page.analysis import NOTES

TEMPO = re.compile(r"\b(\d{2,3})\s*bpm\b", re.IGNORECASE)
SHIFT = "(#|b|♯|♭|-sharp|-flat)?"
# "f# minor", "Bb MAJOR"; and "Am", whose case tells it from the word.
KEYS = (
    re.compile(rf"\b([A-G]){SHIFT} ?(maj|min)(?:or)?\b", re.IGNORECASE),
    re.compile(rf"\b([A-G]){SHIFT}(m)\b"),
)
LONGEST_TITLE = 60  # letters of a prompt
SHIFTS = {"#": 1, "♯": 1, "-sharp": 1, "b": -1, "♭": -1, "-flat": -1}


@dataclass(frozen=True)
class Clip:
    """One audio file of a take; its seed alone gives it again."""

    name: str
    file: Path
    seed: int | None


@dataclass(frozen=True, eq=False)  # by identity, as its dicts have no hash
class Take:
    """One prediction: its number, the settings without secrets, what came of it."""

    number: int
    settings: dict[str, Any]
    clips: tuple[Clip, ...]
    facts: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What was asked for in words, "" for nothing."""
        return self.settings.get("prompt") or ""

    @property
    def title(self) -> str:
        """One line that tells it from others."""
        said = self.prompt or "without a prompt"
        said = said if len(said) <= LONGEST_TITLE else said[: LONGEST_TITLE - 1] + "…"
        return f"{self.number} · {said} · seed {self.clips[0].seed}"


def names(number: int, clips: int) -> list[str]:
    """What the clips of a take are called."""
    if clips == 1:
        return [f"Take {number}"]
    return [f"Take {number}, clip {index + 1}" for index in range(clips)]


def choices(takes: Sequence[Take]) -> list[tuple[str, int]]:
    """Takes for a list, the newest first."""
    return [(take.title, take.number) for take in reversed(takes)]


def clips(takes: Sequence[Take]) -> dict[str, Clip]:
    """Every clip by its name, the newest take's first."""
    return {clip.name: clip for take in reversed(takes) for clip in take.clips}


def asked_tempo(prompt: str) -> float | None:
    """The beats a minute that a prompt names."""
    found = TEMPO.search(prompt)
    return float(found[1]) if found else None


def asked_key(prompt: str) -> str | None:
    """The key that a prompt names, in sharps: "Bbm" is "A# minor"."""
    found = next(filter(None, (key.search(prompt) for key in KEYS)), None)
    if found is None:
        return None
    natural = NOTES.index(found[1].upper())
    tonic = NOTES[(natural + SHIFTS.get((found[2] or "").lower(), 0)) % 12]
    return f"{tonic} {'major' if found[3].lower() == 'maj' else 'minor'}"
