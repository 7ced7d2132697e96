"""What was made: players, what can be done with a clip, figures, and two clips compared."""

from collections.abc import Callable
from html import escape
from urllib.parse import quote

import gradio as gr

from musicgen.page import analysis, describe, takes
from musicgen.page.form import Form
from musicgen.page.takes import Clip, Take

EMPTY = '<p class="empty">What you make appears here. Write a prompt, or take an example.</p>'


def find(made: list[Take], number: int) -> Take | None:
    """The take of that number; 0 is none."""
    return next((one for one in made if one.number == number), None)


def players(form: Form, one: Take | None, then_run: Callable[[gr.events.Dependency], None]) -> None:
    """Players of a take's clips, side by side, each with what can be done with it.

    `then_run` gets the events after which a new prediction begins.
    """
    if one is None:
        gr.HTML(EMPTY)
        return
    gr.HTML(f"<h2>{escape(one.prompt or 'Without a prompt')}</h2>")
    with gr.Row():
        for clip in one.clips:
            with gr.Column(min_width=160):
                then_run(_player(form, one, clip))


def _player(form: Form, one: Take, clip: Clip) -> gr.events.Dependency:
    """One player; the event that asks for a variation of its clip."""
    gr.Audio(
        str(clip.file),
        label=clip.name,
        interactive=False,
        buttons=["download"],
        elem_classes="several" if len(one.clips) > 1 else None,
    )
    with gr.Row():
        again = gr.Button("Again with this seed", size="sm", min_width=80)
        vary = gr.Button("Vary", size="sm", min_width=80)
        onward = gr.Button("Continue this", size="sm", min_width=80)
    settings = one.settings

    def continued() -> dict[object, object]:
        return form.continued(settings, str(clip.file), analysis.hear(clip.file).seconds)

    again.click(lambda: form.filled(settings | {"seed": clip.seed}), None, form.inputs)
    onward.click(continued, None, form.inputs)
    return vary.click(lambda: form.filled(settings | {"seed": None}), None, form.inputs)


def measured(made: list[Take], number: int) -> str:
    """Figures and pictures of a take."""
    one = find(made, number)
    return describe.take(one) if one else ""


def compared(made: list[Take], a: str | None, b: str | None) -> str:
    """A player of two clips, of which one is heard; page.js moves it."""
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
