"""HTML that describes a take: measured tempo, key and level, next to those in the prompt."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from musicgen.errors import InputError
from musicgen.page import analysis, pictures, prompts
from musicgen.page.analysis import Measurements
from musicgen.page.takes import Clip, Take

TEMPO_TOLERANCE = 0.05
OCTAVES = (0.5, 1.0, 2.0)  # beat trackers often report half or double the tempo
NO_LEVEL = float("-inf")


def take_html(one: Take) -> str:
    """The measurements of all clips of a take, side by side."""
    articles = "".join(_clip(one, clip) for clip in one.clips)
    return f'<div class="clips">{articles}</div>{settings(one)}'


def _clip(one: Take, clip: Clip) -> str:
    measured = analysis.measure(clip.file)
    rows = [
        ("Tempo", *_tempo(measured.tempo, prompts.tempo(one.prompt))),
        ("Key", *_key(measured.keys, prompts.key(one.prompt))),
        ("Level", _level(measured.lufs), ""),
        ("Length", f"{measured.seconds:.2f} s", ""),
        ("Seed", str(clip.seed), ""),
        *((name, text, "") for name, text in speed(one.metrics)),
    ]
    facts = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in rows
    )
    plots = [
        "<h4>Mel spectrogram and beats</h4>",
        pictures.mel(measured.mel, measured.beats, measured.seconds, measured.rate),
        *_chroma(one, measured),
    ]
    return (
        f'<section aria-label="{escape(clip.name)}, measured"><h3>{escape(clip.name)}</h3>'
        f"<dl>{facts}</dl>{''.join(plots)}</section>"
    )


def _tempo(measured: float, prompt: float | None) -> tuple[str, str]:
    value = f"{measured:.0f} bpm" if measured else "no beat"
    if prompt is None:
        return value, ""
    close = any(abs(measured * octave / prompt - 1) <= TEMPO_TOLERANCE for octave in OCTAVES)
    return value, f"{'✓' if close else '✗'} prompt: {prompt:.0f} bpm"


def _key(measured: Sequence[str], prompt: str | None) -> tuple[str, str]:
    if not measured:
        return "none", ""
    if prompt is None:
        return measured[0], ""
    rank = measured.index(prompt) + 1
    note = "" if rank == 1 else f" (rank {rank} of {len(measured)})"
    return measured[0], f"{'✓' if rank == 1 else '✗'} prompt: {prompt}{note}"


def _level(lufs: float) -> str:
    return "silence" if lufs == NO_LEVEL else f"{lufs:.1f} LUFS".replace("-", "−")


def speed(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The server's own timings, as (name, value)."""
    found = []
    if "predict_time" in metrics:
        found.append(("Generated in", f"{metrics['predict_time']:.1f} s"))
    if "real_time_factor" in metrics:
        found.append(("Real-time factor", f"{metrics['real_time_factor']:.1f}×"))
    return found


def _chroma(one: Take, measured: Measurements) -> list[str]:
    """The result's chromagram, below that of the melody if the take followed one."""
    own = pictures.chromagram(measured.chroma, measured.seconds)
    melody = one.settings.get("input_audio")
    if not melody or one.settings.get("continuation"):
        return ["<h4>Chromagram</h4>", own]
    mono = analysis.load_mono(Path(melody), measured.rate)
    start, end = slice_of(one.settings, len(mono) / measured.rate)
    part = mono[round(start * measured.rate) : round(end * measured.rate)]
    given = analysis.chroma(part, measured.rate)
    cosine = analysis.similarity(given, measured.chroma)
    length = min(end - start, measured.seconds)
    frames = round(measured.chroma.shape[1] * length / measured.seconds)
    return [
        f"<h4>Chroma of the melody (top) and the result, cosine similarity {cosine:.2f}</h4>",
        pictures.chromagram(given[:, :frames], length, "The melody's chromagram"),
        pictures.chromagram(measured.chroma[:, :frames], length, "The result's chromagram"),
    ]


def slice_of(wanted: dict[str, Any], seconds: float) -> tuple[float, float]:
    """The seconds of input audio that settings select; all of it if they are invalid."""
    given = (wanted.get(f"continuation_{side}") for side in ("start", "end"))
    start, end = (value if isinstance(value, int | float) else None for value in given)
    start = start or 0.0
    end = seconds if end is None or end < 0 else min(end, seconds)
    return (start, end) if 0 <= start < end else (0.0, seconds)


def settings(one: Take) -> str:
    """All inputs and the rest of the output, folded."""
    shown = {name: value for name, value in one.settings.items() if value is not None}
    if "input_audio" in shown:
        shown["input_audio"] = "a file"
    shown |= {f"output: {name}": value for name, value in one.facts.items()}
    rows = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in shown.items()
    )
    return f"<details><summary>All settings of this take</summary><dl>{rows}</dl></details>"


def use(wanted: dict[str, Any]) -> str:
    """How the input audio will be used: a sentence and its waveform, or an error."""
    if not wanted.get("input_audio"):
        return ""
    try:
        mono = analysis.load_mono(Path(wanted["input_audio"]))
    except InputError as exc:
        return f'<p class="field-error" role="alert">{escape(_of_file(str(exc)))}</p>'
    seconds = len(mono) / analysis.RATE
    start, end = slice_of(wanted, seconds)
    used = f"seconds {start:g} to {end:.1f} of {seconds:.1f}"
    if wanted.get("continuation"):
        new = max((wanted.get("duration") or 0) - (end - start), 0)
        text = f"<strong>Continuation</strong>: starts with {used}, then {new:.1f} s are new."
    else:
        text = f"<strong>Melody</strong>: {used}."
    return f"<p>{text}</p>{pictures.waveform(mono, seconds, start, end)}"


def _of_file(message: str) -> str:
    """The message of an InputError about a file: "not.mp3: cannot be read as audio"."""
    return message.removeprefix("input_audio=").replace("'", "", 2)
