"""Runs one prediction from the form to a take, and updates the page meanwhile."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any

import gradio as gr

from musicgen.commands import client
from musicgen.commands.client import CancelledError, Prediction, RefusedError, ServerError
from musicgen.page import fields, takes
from musicgen.page.backend import Backend
from musicgen.page.form import Form, Updates
from musicgen.page.progress import Progress
from musicgen.page.takes import Take


@dataclass(frozen=True)
class Controls:
    """The components that a run updates, apart from the form's error messages."""

    generate: gr.Button
    cancel: gr.Button
    status: gr.HTML
    running: gr.State  # id of this visitor's running prediction, or ""
    takes: gr.State  # list[Take], oldest first
    shown: gr.State  # number of the take that is shown
    takes_list: gr.Radio

    @property
    def all(self) -> list[gr.blocks.Block]:
        """All of them, as outputs of an event."""
        return [
            self.generate,
            self.cancel,
            self.status,
            self.running,
            self.takes,
            self.shown,
            self.takes_list,
        ]


def run(
    backend: Backend, form: Form, controls: Controls, made: list[Take], running: str, *values: Any
) -> Iterator[Updates]:
    """Yield updates of the page, from the start of a prediction to its end."""
    if running:
        return
    settings = fields.settings(form.fields, values)
    prediction_id = client.new_id()
    started = monotonic()
    yield form.show_errors({}) | _started(controls, prediction_id)
    try:
        steps = backend.predict(prediction_id, fields.api_inputs(form.fields, settings))
        prediction = yield from _progress(steps, controls, started)
        take = backend.save(
            _next_number(made), fields.without_secrets(form.fields, settings), prediction
        )
    except CancelledError as exc:
        yield _ended(controls, str(exc), "cancelled")
    except RefusedError as exc:
        yield form.show_errors(exc.fields) | _ended(controls, _summary(exc, form), "failed")
    except ServerError as exc:
        yield _ended(controls, str(exc), "failed")
    else:
        message = f"Take {take.number} is ready, after {monotonic() - started:.1f} s."
        made = [*made, take]
        yield _ended(controls, message, "ready") | {
            controls.takes: made,
            controls.shown: take.number,
            controls.takes_list: gr.Radio(takes.choices(made), value=take.number, visible=True),
        }


def _summary(error: RefusedError, form: Form) -> str:
    """The status line for an error: its message, unless that is shown at the fields."""
    if error.fields and all(name in form.errors for name in error.fields):
        return "Nothing was generated: see the highlighted field."
    return str(error)


def _next_number(made: list[Take]) -> int:
    return made[-1].number + 1 if made else 1


def _progress(
    steps: Generator[Progress | None, None, Prediction], controls: Controls, started: float
) -> Generator[Updates, None, Prediction]:
    """Yield a prediction's progress as updates of the page; return the prediction."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            prediction: Prediction = end.value
            return prediction
        yield {controls.status: progress_bar(step, monotonic() - started)}


def _started(controls: Controls, prediction_id: str) -> Updates:
    return {
        controls.generate: gr.Button(interactive=False),
        controls.cancel: gr.Button(interactive=True),
        controls.running: prediction_id,
        controls.status: progress_bar(None, 0),
    }


def _ended(controls: Controls, message: str, kind: str) -> Updates:
    return {
        controls.generate: gr.Button(interactive=True),
        controls.cancel: gr.Button(interactive=False),
        controls.running: "",
        controls.status: f'<p class="{kind}" role="status">{escape(message)}</p>',
    }


def progress_bar(step: Progress | None, seconds: float) -> str:
    """A progress bar with the time left, or an indeterminate one if the progress is unknown."""
    if step is None:
        return f'<progress aria-label="Working"></progress><p>Working, {seconds:.0f} s</p>'
    done = f"{step.stage}, step {step.done} of {step.total}"
    left = "finishing" if step.done == step.total else f"{step.left} left"
    return (
        f'<progress aria-label="Progress" value="{step.done}" max="{step.total}"></progress>'
        f"<p>{escape(done)} · {left} · {seconds:.0f} s</p>"
    )
