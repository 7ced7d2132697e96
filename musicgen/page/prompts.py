"""The tempo and key that a prompt names: read, or written into it."""

import re
from collections.abc import Sequence

from musicgen.page.analysis import NOTES

TEMPO = re.compile(r"\b(\d{2,3})\s*bpm\b", re.IGNORECASE)
SHIFT = "(#|b|♯|♭|-sharp|-flat)?"
# "f# minor", "Bb MAJOR"; and "Am", in this case only, since "am" is a word.
KEYS = (
    re.compile(rf"\b([A-G]){SHIFT} ?(maj|min)(?:or)?\b", re.IGNORECASE),
    re.compile(rf"\b([A-G]){SHIFT}(m)\b"),
)
SHIFTS = {"#": 1, "♯": 1, "-sharp": 1, "b": -1, "♭": -1, "-flat": -1}
ALL_KEYS = tuple(f"{note} {mode}" for mode in ("minor", "major") for note in NOTES)
BEATS_PER_BAR = 4


def tempo(prompt: str) -> float | None:
    """The tempo in a prompt, in beats per minute."""
    found = TEMPO.search(prompt)
    return float(found[1]) if found else None


def key(prompt: str) -> str | None:
    """The key in a prompt, spelled with sharps: "Bbm" is "A# minor"."""
    found = _key(prompt)
    if found is None:
        return None
    natural = NOTES.index(found[1].upper())
    tonic = NOTES[(natural + SHIFTS.get((found[2] or "").lower(), 0)) % 12]
    return f"{tonic} {'major' if found[3].lower() == 'maj' else 'minor'}"


def with_tempo(prompt: str, bpm: str | None) -> str:
    """The prompt with this tempo instead of its own; without a tempo if it is None or ""."""
    return _replace(prompt, TEMPO.search(prompt), f"{bpm} bpm" if bpm else "")


def with_key(prompt: str, name: str | None) -> str:
    """The prompt with this key instead of its own; without a key if it is None or ""."""
    return _replace(prompt, _key(prompt), name or "")


def seconds_of_bars(bars: int, bpm: float) -> int:
    """Seconds, rounded up, of a clip from which so many bars can be cut: one beat more."""
    return -int(-(BEATS_PER_BAR * bars + 1) * 60 // bpm)


def file_stem(prompt: str, name: str = "") -> str:
    """A part of a file name: "lofi-chill-C-minor-80bpm", or the take's own name."""
    bpm = tempo(prompt)
    start = re.split(r"[,;\n]", prompt.strip(), maxsplit=1)[0][:40]
    described: Sequence[str | None] = (start, key(prompt), f"{bpm:.0f}bpm" if bpm else None)
    text = name or " ".join(dict.fromkeys(filter(None, described)))
    return re.sub(r"[^\w#]+", "-", text).strip("-")[:80]


def _key(prompt: str) -> re.Match[str] | None:
    return next(filter(None, (pattern.search(prompt) for pattern in KEYS)), None)


def _replace(prompt: str, found: re.Match[str] | None, text: str) -> str:
    """The prompt with `text` in place of what was found, or appended after a comma."""
    if found is None:
        return ", ".join(filter(None, [prompt.strip().rstrip(","), text]))
    before, after = prompt[: found.start()], prompt[found.end() :]
    if text:
        return before + text + after
    return ", ".join(filter(None, (part.strip(" ,") for part in (before, after))))
