"""Cancels a request from a thread other than the one that works on it."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Cancellation:
    """Whether a request is cancelled. Cancelling it also cancels the jobs it waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._covered: list[Sequence[Future[Any]]] = []

    def cancel(self) -> None:
        """Cancel the request's jobs now, and its own thread at its next `check`."""
        with self._lock:
            self._cancelled = True
            for jobs in self._covered:
                for job in jobs:
                    job.cancel()

    def check(self) -> None:
        """Raise CancelledError if the request is cancelled."""
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def covers(self, jobs: Sequence[Future[Any]]) -> Iterator[None]:
        """Cancel `jobs` with the request, and when the block ends before they have results.

        Blocks may be nested: each covers its own jobs.
        """
        try:
            with self._lock:
                self._covered.append(jobs)
            self.check()
            yield
        finally:
            with self._lock:  # their results need not live as long as the request
                self._covered = [other for other in self._covered if other is not jobs]
            for job in jobs:
                job.cancel()  # has no effect on a finished job


# The request of the current thread. The default belongs to no request and is never cancelled.
current: ContextVar[Cancellation] = ContextVar("cancellation", default=Cancellation())  # noqa: B039
