"""The takes of one visit to the page, and the tempo and key that their prompts name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen.page.analysis import NOTES

TEMPO = re.compile(r"\b(\d{2,3})\s*bpm\b", re.IGNORECASE)
SHIFT = "(#|b|♯|♭|-sharp|-flat)?"
# "f# minor", "Bb MAJOR"; and "Am", in this case only, since "am" is a word.
KEYS = (
    re.compile(rf"\b([A-G]){SHIFT} ?(maj|min)(?:or)?\b", re.IGNORECASE),
    re.compile(rf"\b([A-G]){SHIFT}(m)\b"),
)
MAX_TITLE = 60  # characters of a prompt
SHIFTS = {"#": 1, "♯": 1, "-sharp": 1, "b": -1, "♭": -1, "-flat": -1}


@dataclass(frozen=True)
class Clip:
    """One audio file of a take, and the seed that reproduces it."""

    name: str
    file: Path
    seed: int | None


@dataclass(frozen=True, eq=False)  # compared by identity: its dicts are not hashable
class Take:
    """One prediction: its number, its settings without secrets, and its results."""

    number: int
    settings: dict[str, Any]
    clips: tuple[Clip, ...]
    facts: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The text prompt, or ""."""
        return self.settings.get("prompt") or ""

    @property
    def title(self) -> str:
        """A title of one line."""
        text = self.prompt or "no prompt"
        text = text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "…"
        return f"{self.number} · {text} · seed {self.clips[0].seed}"


def names(number: int, clips: int) -> list[str]:
    """The names of a take's clips."""
    if clips == 1:
        return [f"Take {number}"]
    return [f"Take {number}, clip {index + 1}" for index in range(clips)]


def choices(takes: Sequence[Take]) -> list[tuple[str, int]]:
    """(title, number) of takes, newest first."""
    return [(take.title, take.number) for take in reversed(takes)]


def clips(takes: Sequence[Take]) -> dict[str, Clip]:
    """All clips by name, those of the newest take first."""
    return {clip.name: clip for take in reversed(takes) for clip in take.clips}


def prompt_tempo(prompt: str) -> float | None:
    """The tempo in a prompt, in beats per minute."""
    found = TEMPO.search(prompt)
    return float(found[1]) if found else None


def prompt_key(prompt: str) -> str | None:
    """The key in a prompt, spelled with sharps: "Bbm" is "A# minor"."""
    found = next(filter(None, (key.search(prompt) for key in KEYS)), None)
    if found is None:
        return None
    natural = NOTES.index(found[1].upper())
    tonic = NOTES[(natural + SHIFTS.get((found[2] or "").lower(), 0)) % 12]
    return f"{tonic} {'major' if found[3].lower() == 'maj' else 'minor'}"
