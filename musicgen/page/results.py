"""The results: a player and buttons for each clip, a comparison of two clips, measurements."""

from collections.abc import Callable, Iterator
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

import gradio as gr

from musicgen.page import analysis, describe, downloads, loops, prompts, takes
from musicgen.page.form import Form
from musicgen.page.takes import Clip, Take

MEASURING = '<p role="status">Measuring tempo, key and loudness …</p>'
LINKED = ("prompt", "duration", "seed")  # inputs in the link of a take

Run = Callable[[gr.events.Dependency], gr.events.Dependency]


def players(form: Form, status: gr.HTML, visit: str, take: Take, run: Run) -> None:
    """Render the players of a take's clips side by side, each with its buttons.

    `run` registers the events after which a new prediction starts.
    """
    gr.HTML(f"<h2>{escape(take.heading)}</h2>")
    with gr.Row():
        for clip in take.clips:
            with gr.Column(min_width=160):
                _player(form, status, visit, take, clip, run)


def _player(form: Form, status: gr.HTML, visit: str, take: Take, clip: Clip, run: Run) -> None:
    """Render the player of one clip."""
    player = gr.Audio(
        str(clip.file),
        label=clip.name,
        interactive=False,
        buttons=[],
        elem_classes="several" if len(take.clips) > 1 else None,
    )
    saves = [downloads.link(visit, take, clip, kind, kind) for kind in downloads.formats(clip)]
    with gr.Row(elem_classes="saves"):
        gr.HTML(f"<p>Download: {' '.join(saves)} {_link(form, take, clip)}</p>", min_width=160)
        repeat = gr.Checkbox(label="Repeat", container=False, min_width=80)
    with gr.Row(elem_classes="uses"):
        again = gr.Button("Reuse settings and seed", size="sm", min_width=80)
        vary = gr.Button("Vary", size="sm", min_width=80)
        onward = gr.Button("Continue", size="sm", min_width=80)
    settings = take.settings
    outputs = [*form.inputs, status]

    def reused() -> dict[Any, Any]:
        text = f"The form has the settings and the seed of {clip.name}. Change them, then Generate."
        return form.filled(settings | {"seed": clip.seed}) | {status: note(text)}

    def continued() -> dict[Any, Any]:
        seconds = analysis.seconds(clip.file)
        text = f"The form continues {clip.name}. Change the prompt or the length, then Generate."
        return form.continued(settings, str(clip.file), seconds) | {status: note(text)}

    repeat.input(lambda on: gr.Audio(loop=on), repeat, player, show_progress="hidden")
    again.click(reused, None, outputs, show_progress="hidden").then(None, js="toForm")
    onward.click(continued, None, outputs, show_progress="hidden").then(None, js="toForm")
    run(vary.click(lambda: form.filled(settings | {"seed": None}), None, form.inputs))


def note(text: str, kind: str = "note") -> str:
    """A line of the status, as HTML."""
    return f'<p class="{kind}" role="status">{escape(text)}</p>' if text else ""


def _link(form: Form, take: Take, clip: Clip) -> str:
    """A link to the page with this prompt and seed in its form; page.js copies it."""
    values = take.settings | {"seed": clip.seed}
    query = {name: values[name] for name in LINKED if values.get(name) is not None}
    address = escape("?" + urlencode(query))
    return f'<a href="{address}" data-copy class="save" title="Copy a link">link</a>'


def measurements(take: Take | None) -> Iterator[str]:
    """Yield that a take is being measured, then its measurements, as HTML."""
    if take is None:
        yield ""
        return
    yield MEASURING  # the first time, importing librosa takes several seconds
    yield describe.take_html(take)


def loops_html(visit: str, take: Take | None) -> tuple[str, bool]:
    """The loops of a take's clips as HTML, and whether its asked tempo was missed."""
    if take is None:
        return "", False
    asked = prompts.tempo(take.prompt)
    listed = [(clip, loops.find(clip.file, asked)) for clip in take.clips]
    rows = "".join(_loops(visit, take, clip, found) for clip, found in listed)
    missed = asked is not None and not any(found.fits for _, found in listed)
    return f'<h3 id="loops-heading">Loops</h3>{rows}', missed


def _loops(visit: str, take: Take, clip: Clip, found: loops.Loops) -> str:
    name = f"<h4>{escape(clip.name)}</h4>" if len(take.clips) > 1 else ""
    if not found.found:
        return f"{name}<p>No bar can be cut from this clip: it has too few beats.</p>"
    items = "".join(_loop(visit, take, clip, found, loop) for loop in found.found)
    missed = ""
    if found.asked and not found.fits:
        missed = f"<p>No loop is within 1% of the {found.asked:.0f} bpm of the prompt.</p>"
    return f'{name}<ul class="loops">{items}</ul>{missed}'


def _loop(visit: str, take: Take, clip: Clip, found: loops.Loops, loop: loops.Loop) -> str:
    bars = f"{loop.bars} bar{'s' if loop.bars > 1 else ''}"
    asked = ""
    if found.asked:
        asked = f" ({'✓' if found.has_tempo(loop) else '✗'} prompt: {found.asked:.0f})"
    play = f"Play {bars} of {clip.name} as a loop"
    return (
        f'<li><button data-loop aria-pressed="false" aria-label="{escape(play)}">▶</button> '
        f"{downloads.link(visit, take, clip, loop.kind, f'Download {bars}')} "
        f"<span>{loop.tempo:.1f} bpm{asked}</span></li>"
    )


def compared(made: list[Take], a: str | None, b: str | None) -> str:
    """A player that switches between two clips; page.js controls it."""
    known = takes.clips(made)
    if a not in known or b not in known:
        return ""
    sounds, buttons = "", ""
    for side, name in (("A", a), ("B", b)):
        address = f"/gradio_api/file={quote(str(known[name].file))}"
        sounds += f'<audio preload="auto" src="{address}"></audio>'
        pressed = "true" if side == "A" else "false"
        buttons += (
            f'<button data-ab="{side}" aria-pressed="{pressed}">{side}: {escape(name)}</button>'
        )
    return (
        f'<div class="ab" role="group" aria-label="Compare {escape(a)} and {escape(b)}">{sounds}'
        f'<button data-ab="play" aria-label="Play">▶</button>{buttons}'
        '<input type="range" min="0" max="1" step="0.001" value="0" aria-label="Position">'
        "<output>0.0 s</output></div>"
    )
