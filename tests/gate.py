"""Waiting for a server to be in the middle of something, and keeping it there."""

import threading
import time


class Gate:
    """`pass_through` waits until `open`; `arrived` waits until somebody stands before it."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self._arrivals.release()
        self._opened.wait()

    def arrived(self) -> None:
        self._arrivals.acquire()

    def open(self) -> None:
        self._opened.set()


def until(condition):
    while not condition():
        time.sleep(0.05)
