"""Starts every thread from one that nobody cancels, where Python cannot cancel one alone.

Cog fetches a prediction's files in threads that it starts anew. A cancel that comes at that time it
raises in the thread which waits for them (PyThreadState_SetAsyncExc). Before Python 3.12 a thread
that has been made and does not run yet has the identity of its maker, and is found first: it dies
before it said that it runs, and its maker waits for ever, with the lock of all thread pools. No
request would be answered any more.
"""

import os
import sys
import threading
from queue import SimpleQueue

_Answer = SimpleQueue[BaseException | None]

_start = threading.Thread.start


class Starter:
    """Its thread starts those of all others."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[threading.Thread, _Answer]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="starter", daemon=True)
        self._process = os.getpid()
        _start(self._thread)

    def start(self, thread: threading.Thread) -> None:
        """As `thread.start()`, which raises RuntimeError if no thread can be made."""
        if os.getpid() != self._process:  # a fork, in which the thread is not
            _start(thread)
            return
        answer: _Answer = SimpleQueue()
        self._asked.put((thread, answer))
        problem = answer.get()
        if problem:
            raise problem

    def _run(self) -> None:
        while True:
            thread, answer = self._asked.get()
            try:
                _start(thread)
            except BaseException as exc:
                answer.put(exc)
            else:
                answer.put(None)


def protect() -> None:
    """From here on `Thread.start` is safe in this process, whoever calls it."""
    if sys.version_info < (3, 12) and threading.Thread.start is _start:
        starter = Starter()

        def start(self: threading.Thread) -> None:
            starter.start(self)

        threading.Thread.start = start  # type: ignore[method-assign]
