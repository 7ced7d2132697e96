"""A take in pictures and figures: what was heard in it beside what was asked for."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from musicgen.errors import InputError
from musicgen.page import analysis, pictures
from musicgen.page.analysis import Heard
from musicgen.page.takes import Clip, Take, asked_key, asked_tempo

TEMPO_TOLERANCE = 0.05
OCTAVES = (0.5, 1.0, 2.0)  # a beat tracker often hears half or double
NO_LEVEL = float("-inf")


def take(one: Take) -> str:
    """All clips of a take, side by side."""
    articles = "".join(_clip(one, clip) for clip in one.clips)
    return f'<div class="clips">{articles}</div>{settings(one)}'


def _clip(one: Take, clip: Clip) -> str:
    heard = analysis.hear(clip.file)
    rows = [
        ("Tempo", *_tempo(heard.tempo, asked_tempo(one.prompt))),
        ("Key", *_key(heard.keys, asked_key(one.prompt))),
        ("Level", _level(heard.lufs), ""),
        ("Length", f"{heard.seconds:.2f} s", ""),
        ("Seed", str(clip.seed), ""),
        *((name, text, "") for name, text in speed(one.metrics)),
    ]
    facts = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in rows
    )
    plots = [
        "<h4>Mel spectrogram and beats</h4>",
        pictures.mel(heard.mel, heard.beats, heard.seconds, heard.rate),
        *_chroma(one, heard),
    ]
    return (
        f'<section aria-label="{escape(clip.name)}, measured"><h3>{escape(clip.name)}</h3>'
        f"<dl>{facts}</dl>{''.join(plots)}</section>"
    )


def _tempo(heard: float, asked: float | None) -> tuple[str, str]:
    value = f"{heard:.0f} bpm" if heard else "no beat"
    if asked is None:
        return value, ""
    close = any(abs(heard * octave / asked - 1) <= TEMPO_TOLERANCE for octave in OCTAVES)
    return value, f"{'✓' if close else '✗'} asked for {asked:.0f}"


def _key(heard: Sequence[str], asked: str | None) -> tuple[str, str]:
    if not heard:
        return "none", ""
    if asked is None:
        return heard[0], ""
    place = heard.index(asked) + 1
    where = "" if place == 1 else f", likely as no. {place}"
    return heard[0], f"{'✓' if place == 1 else '✗'} asked for {asked}{where}"


def _level(lufs: float) -> str:
    return "silence" if lufs == NO_LEVEL else f"{lufs:.1f} LUFS".replace("-", "−")


def speed(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What the server says of its own time."""
    found = []
    if "predict_time" in metrics:
        found.append(("Made in", f"{metrics['predict_time']:.1f} s"))
    if "real_time_factor" in metrics:
        found.append(("Real time", f"{metrics['real_time_factor']:.1f}×"))
    return found


def _chroma(one: Take, heard: Heard) -> list[str]:
    """The result's chroma and, of a take that followed a melody, the melody's above it."""
    own = pictures.chromagram(heard.chroma, heard.seconds)
    melody = one.settings.get("input_audio")
    if not melody or one.settings.get("continuation"):
        return ["<h4>Chromagram</h4>", own]
    mono = analysis.listen(Path(melody), heard.rate)
    start, end = slice_of(one.settings, len(mono) / heard.rate)
    part = mono[round(start * heard.rate) : round(end * heard.rate)]
    given = analysis.chroma(part, heard.rate)
    cosine = analysis.similarity(given, heard.chroma)
    length = min(end - start, heard.seconds)
    frames = round(heard.chroma.shape[1] * length / heard.seconds)
    return [
        f"<h4>Chroma: the melody above the result, cosine {cosine:.2f}</h4>",
        pictures.chromagram(given[:, :frames], length, "The melody's chromagram"),
        pictures.chromagram(heard.chroma[:, :frames], length, "The result's chromagram"),
    ]


def slice_of(wanted: dict[str, Any], seconds: float) -> tuple[float, float]:
    """The seconds that settings take of input audio; all of it where they take none."""
    given = (wanted.get(f"continuation_{side}") for side in ("start", "end"))
    start, end = (value if isinstance(value, int | float) else None for value in given)
    start = start or 0.0
    end = seconds if end is None or end < 0 else min(end, seconds)
    return (start, end) if 0 <= start < end else (0.0, seconds)


def settings(one: Take) -> str:
    """Everything that was sent, folded."""
    shown = {name: value for name, value in one.settings.items() if value is not None}
    if "input_audio" in shown:
        shown["input_audio"] = "a file"
    shown |= {f"answer: {name}": value for name, value in one.facts.items()}
    rows = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in shown.items()
    )
    return f"<details><summary>All settings of this take</summary><dl>{rows}</dl></details>"


def use(wanted: dict[str, Any]) -> str:
    """What will become of the input audio, in a sentence and a picture."""
    if not wanted.get("input_audio"):
        return ""
    try:
        mono = analysis.listen(Path(wanted["input_audio"]))
    except InputError as exc:
        return f'<p class="field-error" role="alert">{escape(str(exc))}</p>'
    seconds = len(mono) / analysis.RATE
    start, end = slice_of(wanted, seconds)
    used = f"seconds {start:g} to {end:.1f} of {seconds:.1f}"
    if wanted.get("continuation"):
        new = max((wanted.get("duration") or 0) - (end - start), 0)
        said = f"<strong>Continued</strong>: begins with {used}, then {new:.1f} s are new."
    else:
        said = f"<strong>Followed as a melody</strong>: {used}."
    return f"<p>{said}</p>{pictures.waveform(mono, seconds, start, end)}"
