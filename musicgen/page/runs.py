"""The events of the page that concern predictions: entering, asking, looking again, cancelling."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from musicgen.page import fields, status, takes
from musicgen.page.form import SEED, Form, Updates
from musicgen.page.results import note
from musicgen.page.takes import Take
from musicgen.page.visits import News, Visit, Visits

SEE_FIELD = "Nothing was generated: see the highlighted field."
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Controls:
    """The components that runs update, apart from the form's."""

    visit: gr.State  # id of the visit
    stored: gr.BrowserState  # the same, in the browser
    seen: gr.State  # version of the newest news that is shown
    shown: gr.State  # number of the take that is shown, or 0
    listed: gr.State  # the numbers of all takes, as text
    timer: gr.Timer  # ticks while there are jobs
    cancel: gr.Button
    message: gr.HTML
    rows: gr.HTML
    said: gr.HTML
    heard: gr.HTML
    takes_list: gr.Radio
    empty: gr.Column  # what is shown while there is no take
    marks: gr.Column  # what can be done with the shown take

    @property
    def of_list(self) -> list[Any]:
        """What `list_updates` updates."""
        return [self.takes_list, self.shown, self.listed, self.empty, self.marks]

    @property
    def of_jobs(self) -> list[Any]:
        """What shows the jobs."""
        return [self.timer, self.cancel, self.rows, self.said, self.heard]

    @property
    def of_news(self) -> list[Any]:
        """What `Runs.refresh` updates, apart from the form's error messages."""
        return [*self.of_jobs, self.message, self.seen, *self.of_list]

    def list_updates(self, made: Sequence[Take], show: int) -> Updates:
        """Updates that list the takes and show one of them: the newest if there is no such."""
        if takes.find(made, show) is None:
            show = made[-1].number if made else 0
        return {
            self.takes_list: gr.Radio(takes.choices(made), value=show or None, visible=bool(made)),
            self.shown: show,
            self.listed: ",".join(str(take.number) for take in made),
            self.empty: gr.Column(visible=not made),
            self.marks: gr.Column(visible=bool(made)),
        }


@dataclass(frozen=True)
class Runs:
    """The handlers, for all visits of a page."""

    visits: Visits
    form: Form
    controls: Controls

    def enter(self, stored: str | None, request: gr.Request) -> Updates:
        """Find the visit of a browser, or make one, and fill the form from the page's address."""
        visit_id = self.visits.enter(stored)
        visit, controls = self.visits[visit_id], self.controls
        jobs, news = visit.look(0)
        known = {controls.visit: visit_id, controls.stored: visit_id}
        seen = {controls.seen: news[-1].version if news else 0}
        listed = controls.list_updates(visit.library.takes, 0)
        linked = self.form.filled(fields.of_query(self.form.fields, dict(request.query_params)))
        # A prediction that has ended is not heard again.
        heard = {} if visit.heard in jobs else {controls.heard: ""}
        return known | seen | listed | linked | self._jobs(visit_id, len(jobs)) | heard

    def submit(self, count: int, visit_id: str, *values: Any) -> Updates:
        """Ask for `count` takes with the form's values and seeds that follow each other."""
        form, message = self.form, self.controls.message
        settings = fields.settings(form.fields, values)
        if errors := fields.errors(form.fields, settings):
            return form.show_errors(errors) | {message: note(SEE_FIELD, "failed")}
        visit = self.visits[visit_id]
        visit.submit([self._request(one) for one in with_seeds(settings, count)])
        updates = {message: "", **self._jobs(visit_id, len(visit.jobs))}
        return form.show_errors({}) | updates

    def refresh(self, visit_id: str, seen: int, shown: int) -> Updates:
        """Show the progress of a visit, and its news."""
        visit = self.visits.get(visit_id)
        if visit is None:
            return {self.controls.timer: gr.Timer(active=False)}
        visit.repeat_cancelling()
        jobs, news = visit.look(seen)
        updates = self._jobs(visit_id, len(jobs))
        return updates | self._news(visit, news, shown) if news else updates

    def cancel(self, visit_id: str) -> None:
        """Cancel all jobs of a visit."""
        self.visits[visit_id].cancel()

    def _request(self, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        form = self.form
        inputs = fields.api_inputs(form.fields, settings) | form.fixed
        return fields.without_secrets(form.fields, settings), inputs

    def _jobs(self, visit_id: str, count: int) -> Updates:
        controls, visit = self.controls, self.visits[visit_id]
        label = f"Cancel all ({count})" if count > 1 else "Cancel"
        return {
            controls.timer: gr.Timer(active=count > 0),
            controls.cancel: gr.Button(label, interactive=count > 0),
            controls.rows: status.rows(visit),
            controls.said: status.announcement(visit),
            controls.heard: status.heard(visit_id, visit),
        }

    def _news(self, visit: Visit, news: list[News], shown: int) -> Updates:
        errors: dict[str, str] = {}
        texts = []
        for item in news:
            found = fields.named(self.form.fields, item.errors, item.settings)
            errors |= found
            at_fields = bool(found) and set(found) <= set(self.form.errors)
            texts.append(SEE_FIELD if at_fields else item.text)
        failed = any(item.kind == "failed" for item in news)
        show = next((item.show for item in reversed(news) if item.show), shown)
        return {
            self.controls.message: note(
                " ".join(dict.fromkeys(texts)), "failed" if failed else news[-1].kind
            ),
            self.controls.seen: news[-1].version,
            **self.controls.list_updates(visit.library.takes, show),
            **(self.form.show_errors(errors) if errors else {}),
        }


def with_seeds(settings: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The settings `count` times, with seeds that follow the given one or a random one."""
    if count == 1:
        return [settings]
    first = settings.get(SEED)
    if first is None or first < 0:
        first = secrets.randbelow(MAX_SEED - count)
    return [settings | {SEED: (first + index) % (MAX_SEED + 1)} for index in range(count)]
