"""Visits: the takes of one browser and its queue of predictions. They outlive a reload."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from time import monotonic
from typing import Any

from musicgen.commands import client
from musicgen.commands.client import CancelledError, RefusedError, ServerError
from musicgen.page.backend import Backend
from musicgen.page.library import Library
from musicgen.page.progress import Progress
from musicgen.page.sound import Sound

RUNNING = 4  # predictions of a visit at once; the others wait, first come, first served
MAX_NEWS = 50  # that are kept


@dataclass(eq=False)
class Job:
    """One prediction that waits or runs. `settings` has no secrets, `inputs` are the API's."""

    settings: dict[str, Any]
    inputs: dict[str, Any]
    leads: bool  # its take is shown when it is ready
    id: str = field(default_factory=client.new_id)
    started: float | None = None
    cancelled: Event = field(default_factory=Event)
    sound: Sound = field(default_factory=Sound)  # what has been made of it
    take: int | None = None  # that it became


@dataclass(frozen=True)
class News:
    """What happened: a message, its kind, errors by field, the request, and the take to show."""

    version: int
    text: str
    kind: str
    errors: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    show: int = 0


class Visit:
    """The takes and the jobs of one browser. Its methods may be called from many threads."""

    def __init__(self, backend: Backend, library: Library) -> None:
        self.backend = backend
        self.library = library
        self.jobs: list[Job] = []  # waiting and running, in order
        self.heard: Job | None = None  # the last that can be heard while it is made
        self.news: list[News] = []
        self._lock = RLock()

    def submit(self, requests: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Queue (settings, inputs). The first of them that is ready is shown."""
        with self._lock:
            batch = [Job(*request, leads=index == 0) for index, request in enumerate(requests)]
            self.jobs += batch
            self._start()

    def cancel(self) -> None:
        """Cancel all jobs."""
        with self._lock:
            for job in self.jobs:
                job.cancelled.set()
            if any(job.started is None for job in self.jobs):
                self.tell("Cancelled.", "cancelled")
            self.jobs = [job for job in self.jobs if job.started is not None]
        self.repeat_cancelling()

    def repeat_cancelling(self) -> None:
        """Cancel running jobs again: a server that had not seen one yet ignored the first time."""
        for job in list(self.jobs):
            if job.cancelled.is_set():
                self.backend.cancel(job.id)

    def progress(self) -> list[tuple[Job, Progress | None]]:
        """The jobs and how far they are."""
        return [(job, self.backend.progress(job.id)) for job in list(self.jobs)]

    def look(self, version: int) -> tuple[list[Job], list[News]]:
        """The jobs, and the news after a version, oldest first."""
        with self._lock:
            return list(self.jobs), [item for item in self.news if item.version > version]

    def tell(self, text: str, kind: str, **more: Any) -> None:
        """Add to the news."""
        with self._lock:
            version = self.news[-1].version + 1 if self.news else 1
            self.news = [*self.news[1 - MAX_NEWS :], News(version, text, kind, **more)]

    def _start(self) -> None:
        running = sum(job.started is not None for job in self.jobs)
        waiting = [job for job in self.jobs if job.started is None]
        for job in waiting[: max(RUNNING - running, 0)]:
            job.started = monotonic()
            if job.leads and self.backend.streams and self.heard not in self.jobs:
                self.heard = job
            Thread(target=self._run, args=(job,), daemon=True).start()

    def _run(self, job: Job) -> None:
        try:
            prediction = self.backend.predict(job.id, job.inputs, job.cancelled, job.sound)
            take = self.library.add(job.settings, prediction)
            job.take = take.number
        except CancelledError as exc:
            self._end(job, str(exc), "cancelled")
        except RefusedError as exc:
            self._end(job, str(exc), "failed", errors=exc.fields, settings=job.settings)
        except (ServerError, OSError) as exc:
            self._end(job, str(exc), "failed")
        except Exception as exc:  # otherwise the job would seem to run for ever
            self._end(job, f"The server's answer could not be used: {exc!r}", "failed")
            raise
        else:
            seconds = monotonic() - (job.started or 0)
            text = f"Take {take.number} is ready, after {seconds:.1f} s."
            self._end(job, text, "ready", show=take.number if job.leads else 0)

    def _end(self, job: Job, text: str, kind: str, **more: Any) -> None:
        job.sound.end()
        with self._lock:
            self.jobs.remove(job)
            self.tell(text, kind, **more)
            self._start()


class Visits:
    """All visits by id, or one for all visitors if takes are kept in a folder of the user's."""

    def __init__(self, backend: Backend, keep: Path | None) -> None:
        self.backend = backend
        self.kept = Visit(backend, Library(keep)) if keep else None
        self._known: dict[str, Visit] = {}

    def enter(self, visit_id: str | None) -> str:
        """The id of a visit: this one, or a new one if it is unknown."""
        if visit_id in self._known:
            return str(visit_id)
        new = secrets.token_urlsafe()
        visit = self.kept or Visit(self.backend, Library(self.backend.folder / client.new_id()))
        self._known[new] = visit
        return new

    def __getitem__(self, visit_id: str) -> Visit:
        return self._known[visit_id]

    def get(self, visit_id: str) -> Visit | None:
        """The visit with an id, or None."""
        return self._known.get(visit_id)

    def close(self) -> None:
        """Remove the audio of deleted takes."""
        for visit in self._known.values():
            visit.library.close()
