"""Threads that do not keep the process alive, and are closed before the interpreter ends.

A thread that needs the interpreter while that ends is unwound by force, and where C++ has called
it, as PyTorch does, the process aborts: "terminate called without an active exception".
"""

import atexit
import threading
from collections.abc import Callable

WAIT_SECONDS = 1.0  # more than a decode step takes; longer work is cut off

_running: dict[threading.Thread, Callable[[], None]] = {}


def start(name: str, run: Callable[[], None], close: Callable[[], None]) -> threading.Thread:
    """A started thread. `close` asks it to end; this module calls it when the process ends."""

    def forget_at_end() -> None:
        try:
            run()
        finally:
            del _running[thread]

    thread = threading.Thread(target=forget_at_end, name=name, daemon=True)
    _running[thread] = close
    thread.start()
    return thread


@atexit.register
def _close_all() -> None:
    threads = dict(_running)
    for close in threads.values():
        close()
    for thread in threads:
        thread.join(WAIT_SECONDS)
