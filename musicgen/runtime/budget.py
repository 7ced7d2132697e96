"""Bounds the memory of work that several requests have open at the same time."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from musicgen.runtime import cancellation

CHECK_SECONDS = 0.1  # between two checks for cancellation


class Budget:
    """A number of bytes that requests take parts of, first come, first served."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes and hold them; a request for more than there is gets all, alone.

        Raises CancelledError if the request is cancelled while it waits.
        """
        size = min(size, self.total)
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                while self._queue[0] is not place or self._free < size:
                    self._changed.wait(CHECK_SECONDS)
                    cancellation.current.get().check()
                self._free -= size
            finally:
                self._queue.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
