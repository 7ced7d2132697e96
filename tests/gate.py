"""Waiting for an event in another thread or process, and holding a request at a chosen point."""

import threading
import time
from collections.abc import Callable

PATIENCE = 600  # seconds until a wait fails: far beyond the time that any machine needs


class Gate:
    """`pass_through` blocks its caller until `open`; `arrived` waits for such a caller.

    A blocked caller calls `meanwhile()` once a second.
    """

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._opened = threading.Event()

    def pass_through(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._arrivals.release()
        while not self._opened.wait(1.0):
            meanwhile()

    def arrived(self) -> None:
        """Return when one more caller is at the gate."""
        assert self._arrivals.acquire(timeout=PATIENCE), "no caller reached the gate"

    def open(self) -> None:
        self._opened.set()


def until(condition, pause=0.05):
    """Return when `condition()` is true; it is called every `pause` seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"still false after {PATIENCE} s"
        time.sleep(pause)
