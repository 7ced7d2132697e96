"""The results: a player and buttons for each clip, its measurements, a comparison of two clips."""

from collections.abc import Callable, Iterator
from html import escape
from urllib.parse import quote

import gradio as gr

from musicgen.page import analysis, describe, takes
from musicgen.page.form import Form
from musicgen.page.takes import Clip, Take

MEASURING = '<p role="status">Measuring tempo, key and loudness …</p>'
EMPTY = '<p class="empty">Results appear here. Write a prompt or choose an example.</p>'


def find(made: list[Take], number: int) -> Take | None:
    """The take with a number, or None."""
    return next((one for one in made if one.number == number), None)


def players(form: Form, one: Take | None, then_run: Callable[[gr.events.Dependency], None]) -> None:
    """Render the players of a take's clips side by side, each with its buttons.

    `then_run` registers the events after which a new prediction starts.
    """
    if one is None:
        gr.HTML(EMPTY)
        return
    gr.HTML(f"<h2>{escape(one.prompt or 'No prompt')}</h2>")
    with gr.Row():
        for clip in one.clips:
            with gr.Column(min_width=160):
                then_run(_player(form, one, clip))


def _player(form: Form, one: Take, clip: Clip) -> gr.events.Dependency:
    """Render the player of one clip; the event of its "Vary" button."""
    gr.Audio(
        str(clip.file),
        label=clip.name,
        interactive=False,
        buttons=["download"],
        elem_classes="several" if len(one.clips) > 1 else None,
    )
    with gr.Row():
        again = gr.Button("Reuse settings and seed", size="sm", min_width=80)
        vary = gr.Button("Vary", size="sm", min_width=80)
        onward = gr.Button("Continue", size="sm", min_width=80)
    settings = one.settings

    def continued() -> dict[object, object]:
        return form.continued(settings, str(clip.file), analysis.measure(clip.file).seconds)

    again.click(lambda: form.filled(settings | {"seed": clip.seed}), None, form.inputs)
    onward.click(continued, None, form.inputs)
    return vary.click(lambda: form.filled(settings | {"seed": None}), None, form.inputs)


def measurements(made: list[Take], number: int) -> Iterator[str]:
    """Yield that a take is being measured, then its measurements, as HTML."""
    take = find(made, number)
    if take is None:
        yield ""
        return
    yield MEASURING  # the first time, importing librosa takes several seconds
    yield describe.take_html(take)


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
