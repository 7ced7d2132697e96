"""Threads that do not keep the process alive, and are closed before the interpreter ends.

A thread that needs the interpreter while that ends is unwound by force, and where C++ has called
it, as PyTorch does, the process aborts: "terminate called without an active exception".
"""

import atexit
import threading
from collections.abc import Callable
from weakref import WeakMethod

WAIT_SECONDS = 1.0  # more than a decode step takes; longer work is cut off

# A thread stays here after its function has returned: it still frees what the function used. The
# methods are weak, so that an ended thread does not keep what it ran for.
_started: dict[threading.Thread, WeakMethod[Callable[[], None]]] = {}


def start(name: str, run: Callable[[], None], close: Callable[[], None]) -> threading.Thread:
    """A started thread. `close`, a method, asks it to end; this module calls it when the process
    ends."""
    for ended in [thread for thread in _started if not thread.is_alive()]:
        _started.pop(ended, None)
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    _started[thread] = WeakMethod(close)
    return thread


@atexit.register
def _close_all() -> None:
    threads = dict(_started)
    for method in threads.values():
        if close := method():
            close()
    for thread in threads:
        thread.join(WAIT_SECONDS)
