"""A fair lock for device work outside the decode loop."""

import threading
from collections import deque
from types import TracebackType
from typing import Any

from torch import nn

from musicgen.runtime.cancellation import current


class DeviceLock:
    """A first come, first served lock that long work yields between its pieces.

    One request at a time, because the memory for separation, encoding and rendering must not add up
    over all requests. Yielded between pieces, because ten minutes of one request's work must not
    delay a short one.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._holder: int | None = None

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._guard:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        mine.wait()
        self._holder = threading.get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._holder = None
        with self._guard:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()

    def yield_before(self, module: nn.Module) -> None:
        """Let other requests go first before each call of `module`, which long work calls often.

        A cancelled request raises CancelledError there.
        """
        module.register_forward_pre_hook(self._yield)

    def _yield(self, *_: Any) -> None:
        if self._holder != threading.get_ident():
            return  # this thread does not hold the lock, so it has nothing to yield
        current.get().check()
        if len(self._queue) > 1:
            self.__exit__(None, None, None)
            self.__enter__()
