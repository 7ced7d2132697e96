"""Who may use the device beside the decode loop: one request at a time, in turns."""

import threading
from collections import deque
from types import TracebackType
from typing import Any

from torch import nn

from musicgen.cancellation import current


class Turns:
    """A lock that goes to whoever asked first, and that long work hands on between its pieces.

    One at a time, because the memory that separating, encoding and rendering take must not add up
    over all requests; in turns, because ten minutes of one must not keep a short one waiting.
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

    def share(self, module: nn.Module) -> None:
        """Make the turn go round whenever `module`, which long work runs again and again, begins.

        There the work also ends if its request was given up.
        """
        module.register_forward_pre_hook(self._give_way)

    def _give_way(self, *_: Any) -> None:
        if self._holder != threading.get_ident():
            return  # whoever runs the module without a turn is alone
        current.get().check()
        if len(self._queue) > 1:
            self.__exit__(None, None, None)
            self.__enter__()
