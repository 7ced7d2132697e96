"""Waiting for a server to be in the middle of something, and keeping it there."""

import threading
import time

# Far beyond what any machine takes: what never comes fails instead of being waited for.
PATIENCE = 600  # seconds


class Gate:
    """`pass_through` waits until `open`; `arrived` waits until somebody stands before it."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self._arrivals.release()
        self._opened.wait()

    def arrived(self) -> None:
        assert self._arrivals.acquire(timeout=PATIENCE), "nobody came"

    def open(self) -> None:
        self._opened.set()


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
