"""The button's work: one prediction from the form to a take, told as it goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any

import gradio as gr

from musicgen.page import client, fields, takes
from musicgen.page.client import CancelledError, RefusedError
from musicgen.page.form import Form, Updates
from musicgen.page.progress import Progress
from musicgen.page.studio import Studio
from musicgen.page.takes import Take


@dataclass(frozen=True)
class Controls:
    """What a run changes beside the form's errors."""

    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    running: gr.State  # the id of this visit's prediction, "" between two
    takes: gr.State  # list[Take], the oldest first
    shown: gr.State  # the number of the take that is shown
    listed: gr.Radio

    @property
    def all(self) -> list[gr.blocks.Block]:
        """For an event's outputs."""
        return [self.go, self.stop, self.status, self.running, self.takes, self.shown, self.listed]


def run(
    studio: Studio, form: Form, controls: Controls, made: list[Take], running: str, *values: Any
) -> Iterator[Updates]:
    """Yield what changes on the page, from the start of a prediction to its end."""
    if running:
        return
    settings = fields.settings(form.fields, values)
    prediction = client.new_id()
    started = monotonic()
    yield form.complaints({}) | _began(controls, prediction)
    try:
        steps = studio.predict(prediction, fields.sent(form.fields, settings))
        answer = yield from _told(steps, controls, started)
        one = studio.keep(_next(made), fields.kept(form.fields, settings), answer)
    except CancelledError as exc:
        yield _ended(controls, str(exc), "cancelled")
    except RefusedError as exc:
        unplaced = [name for name in exc.fields if name not in form.errors]
        said = "Not made: see the marked field." if exc.fields and not unplaced else str(exc)
        yield form.complaints(exc.fields) | _ended(controls, said, "failed")
    else:
        said = f"Take {one.number} is ready, after {monotonic() - started:.1f} s."
        made = [*made, one]
        yield _ended(controls, said, "ready") | {
            controls.takes: made,
            controls.shown: one.number,
            controls.listed: gr.Radio(takes.choices(made), value=one.number, visible=True),
        }


def _next(made: list[Take]) -> int:
    return made[-1].number + 1 if made else 1


def _told(steps: Any, controls: Controls, started: float) -> Any:
    """Tell the progress of a prediction; return its answer."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield {controls.status: moving(step, monotonic() - started)}


def _began(controls: Controls, prediction: str) -> Updates:
    return {
        controls.go: gr.Button(interactive=False),
        controls.stop: gr.Button(interactive=True),
        controls.running: prediction,
        controls.status: moving(None, 0),
    }


def _ended(controls: Controls, said: str, kind: str) -> Updates:
    return {
        controls.go: gr.Button(interactive=True),
        controls.stop: gr.Button(interactive=False),
        controls.running: "",
        controls.status: f'<p class="{kind}" role="status">{escape(said)}</p>',
    }


def moving(step: Progress | None, seconds: float) -> str:
    """A bar with the time left, or without an end where the server tells none."""
    if step is None:
        return f'<progress aria-label="Working"></progress><p>Working, {seconds:.0f} s</p>'
    done = f"{step.stage}, step {step.done} of {step.total}"
    left = "finishing" if step.done == step.total else f"{step.left} left"
    return (
        f'<progress aria-label="Progress" value="{step.done}" max="{step.total}"></progress>'
        f"<p>{escape(done)} · {left} · {seconds:.0f} s</p>"
    )
