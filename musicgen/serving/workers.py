"""The threads in which requests take their straight way, one each, while the server listens."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from musicgen.runtime import memory
from musicgen.runtime.cancellation import Cancellation, current
from musicgen.serving import thread_start

P = ParamSpec("P")
T = TypeVar("T")

# More than Cog ever lets in; a thread is made when none is idle.
THREADS = 1024


class Workers:
    """Runs functions in threads for an event loop."""

    def __init__(self) -> None:
        thread_start.protect()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns, in a thread that logs and records metrics for the caller.

        If the caller is cancelled, so is the request's `Cancellation`; the function has cleaned up
        when this raises.
        """
        cancellation = Cancellation()
        context = contextvars.copy_context()
        context.run(current.set, cancellation)

        def straight_way() -> T:
            try:
                return context.run(function, *args, **kwargs)
            finally:
                memory.give_back()

        work = asyncio.get_running_loop().run_in_executor(self._threads, straight_way)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancellation.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # which nobody else asks for
            raise
