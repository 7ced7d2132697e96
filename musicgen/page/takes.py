"""A take: one prediction with its settings and its audio files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TITLE = 60  # characters of a prompt


@dataclass(frozen=True)
class Clip:
    """One audio file of a take, and the seed that reproduces it."""

    name: str
    file: Path
    seed: int | None


@dataclass(frozen=True, eq=False)  # compared by identity: its dicts are not hashable
class Take:
    """One prediction: its number, its settings without secrets, its results, and the user's marks.

    `name` is what the user called it, or "".
    """

    number: int
    settings: dict[str, Any]
    clips: tuple[Clip, ...]
    facts: dict[str, Any]
    metrics: dict[str, Any]
    name: str = ""
    starred: bool = False

    @property
    def prompt(self) -> str:
        """The text prompt, or ""."""
        return self.settings.get("prompt") or ""

    @property
    def heading(self) -> str:
        """What the user called it, or its prompt."""
        return self.name or self.prompt or "No prompt"

    @property
    def title(self) -> str:
        """A title of one line."""
        text = self.heading
        text = text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "…"
        star = "★ " if self.starred else ""
        return f"{star}{self.number} · {text} · seed {self.clips[0].seed}"


def clip_names(number: int, clips: int) -> list[str]:
    """The names of a take's clips."""
    if clips == 1:
        return [f"Take {number}"]
    return [f"Take {number}, clip {index + 1}" for index in range(clips)]


def file_name(number: int, stem: str, seed: int | None, index: int) -> str:
    """A file name for one clip, without a suffix: "take-2 lofi-chill-C-minor-80bpm seed-80"."""
    clip = f"clip-{index + 1}" if seed is None else f"seed-{seed}"
    return " ".join(filter(None, [f"take-{number}", stem, clip]))


def choices(takes: Sequence[Take]) -> list[tuple[str, int]]:
    """(title, number) of takes, newest first."""
    return [(take.title, take.number) for take in reversed(takes)]


def clips(takes: Sequence[Take]) -> dict[str, Clip]:
    """All clips by name, those of the newest take first."""
    return {clip.name: clip for take in reversed(takes) for clip in take.clips}


def find(takes: Sequence[Take], number: int) -> Take | None:
    """The take with a number, or None."""
    return next((take for take in takes if take.number == number), None)
