"""Lets a request be given up from another thread than the one that works for it."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Cancellation:
    """Whether one request was given up; jobs that it waits for are given up with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._jobs: list[Future[Any]] = []

    def cancel(self) -> None:
        """Give up, at once what others do for the request, and the rest at its next `check`."""
        with self._lock:
            self._cancelled = True
            for job in self._jobs:
                job.cancel()

    def check(self) -> None:
        """Raises CancelledError if the request was given up."""
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def covers(self, jobs: list[Future[Any]]) -> Iterator[None]:
        """Jobs that nobody wants any more once the request is given up, or the block has ended."""
        try:
            with self._lock:
                self._jobs = jobs
            self.check()
            yield
        finally:
            for job in jobs:
                job.cancel()  # nothing, where there is a result


# Of the request that a thread works for; one that nobody gives up outside of a server.
current: ContextVar[Cancellation] = ContextVar("cancellation", default=Cancellation())  # noqa: B039
