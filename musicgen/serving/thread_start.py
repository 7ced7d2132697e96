"""Workaround for a race in CPython before 3.12 between starting and cancelling a thread.

Cog downloads a prediction's inputs in threads that it starts for that. To cancel a download, it
raises an exception in the thread that waits for them (PyThreadState_SetAsyncExc). Before Python
3.12, a thread that is created but not yet running has its creator's identity and is found first:
the new thread dies before it reports that it runs, and its creator waits forever, holding the lock
of all thread pools. The server would not answer any more.

Here a dedicated thread, which is never cancelled, starts all threads.
"""

import os
import sys
import threading
from queue import SimpleQueue

_Answer = SimpleQueue[BaseException | None]

_start = threading.Thread.start


class Starter:
    """A thread that starts the threads of all others."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[threading.Thread, _Answer]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="starter", daemon=True)
        self._process = os.getpid()
        _start(self._thread)

    def start(self, thread: threading.Thread) -> None:
        """Like `thread.start()`, which raises RuntimeError if the system allows no more threads."""
        forked = os.getpid() != self._process  # the starter's thread does not exist in a fork
        # A finalizer that starts a thread may run in the starter itself.
        if forked or threading.current_thread() is self._thread:
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
            del thread, answer  # or the last thread would live until the next one starts


def protect() -> None:
    """Make every `Thread.start` in this process safe. Does nothing from Python 3.12 on."""
    if sys.version_info < (3, 12) and threading.Thread.start is _start:
        starter = Starter()

        def start(self: threading.Thread) -> None:
            starter.start(self)

        threading.Thread.start = start  # type: ignore[method-assign]
