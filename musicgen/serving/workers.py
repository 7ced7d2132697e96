"""Worker threads: one for each request, while the event loop stays free."""

import asyncio
import atexit
import contextvars
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from musicgen.runtime import memory
from musicgen.runtime.cancellation import Cancellation, current
from musicgen.serving import thread_start

P = ParamSpec("P")
T = TypeVar("T")

# Above any COG_MAX_CONCURRENCY. The pool creates a thread only when none is idle.
THREADS = 1024

# When Python ends, it searches all objects for garbage several times: with PyTorch, for 0.7 s.
# Frozen objects are not searched.
atexit.register(gc.freeze)


class Workers:
    """Runs functions in threads for an event loop."""

    def __init__(self) -> None:
        thread_start.protect()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a worker thread, in the caller's context; return its result.

        The context carries Cog's log and metrics scope. If the caller is cancelled, the request's
        `Cancellation` is cancelled, and this raises only after the function has cleaned up.
        """
        cancellation = Cancellation()
        context = contextvars.copy_context()
        context.run(current.set, cancellation)

        def work() -> T:
            try:
                return context.run(function, *args, **kwargs)
            finally:
                memory.give_back()

        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancellation.cancel()
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # marks it as retrieved; asyncio would log it otherwise
            raise
