"""The one thread for device work outside the decode loop: T5, Demucs, EnCodec, diffusion.

One piece of work at a time, because the memory for separation, encoding and rendering must not add
up over all requests. In one thread, because CUDA libraries keep a handle and a workspace (32 MB on
Hopper) for each thread that uses them. Between its pieces, long work lets much shorter work run
first, because minutes of one request's work must not delay a short one.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from musicgen.decoder import daemon, faults
from musicgen.runtime.cancellation import current

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Work may interrupt other work that costs more than this many times as much. As the interrupting
# work can be interrupted, too, this also bounds the depth of the stack.
MUCH_SHORTER = 2


@dataclass
class _Work:
    """A function of a request, in that request's context."""

    function: Callable[[], Any]
    cost: float
    context: Context = field(default_factory=copy_context)
    future: Future[Any] = field(default_factory=Future)


class DeviceThread:
    """Runs functions for all other threads, first come, first served."""

    def __init__(self, device: torch.device) -> None:
        """The thread starts with the first function."""
        self.device = device
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()
        self._interruptible: list[_Work] = []  # the running work; each interrupts the one before
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, function: Callable[[], T], cost: float = 0.0) -> T:
        """The result of `function()`, run in the device thread in the caller's context.

        `cost` is proportional to the time that it takes. Raises CancelledError if the request is
        cancelled before the function has begun.
        """
        if threading.current_thread() is self._thread:
            return function()
        work = _Work(function, cost)
        with current.get().covers([work.future]):
            with self._changed:
                if self._thread is None:
                    self._thread = daemon.start("device", self._run, self.close)
                self._waiting.append(work)
                self._changed.notify()
            result: T = work.future.result()
            return result

    def close(self) -> None:
        """End the thread once it has nothing to do."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def yield_before(self, module: nn.Module) -> None:
        """Let shorter work run before each call of `module`, which long work calls often.

        A cancelled request raises CancelledError there.
        """
        module.register_forward_pre_hook(self._yield)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if not self._waiting:
                    return
            self._execute_next(float("inf"))

    def _yield(self, *_: Any) -> None:
        if threading.current_thread() is not self._thread:
            return  # this is not work of the device thread
        current.get().check()
        # One at a time, so that many short requests cannot stop a long one.
        with torch.inference_mode(False), torch.autocast(self.device.type, enabled=False):
            self._execute_next(self._interruptible[-1].cost / MUCH_SHORTER)

    def _execute_next(self, below: float) -> None:
        """Execute the first waiting work that costs less than `below`, if there is any."""
        with self._changed:
            work = next((work for work in self._waiting if work.cost < below), None)
            if work is None:
                return
            self._waiting.remove(work)
        if not work.future.set_running_or_notify_cancel():
            return
        self._interruptible.append(work)
        try:
            result = work.context.run(self._with_memory, work.function)
        except BaseException as exc:
            work.future.set_exception(exc)
        else:
            work.future.set_result(result)
        finally:
            self._interruptible.pop()

    def _with_memory(self, function: Callable[[], T]) -> T:
        """Call a function; if the GPU's memory runs out, empty PyTorch's cache and call it again.

        cuBLAS and cuDNN allocate outside of that cache, and cannot make it give memory back.
        """
        try:
            return function()
        except RuntimeError as exc:
            if self.device.type != "cuda" or not faults.is_exhausted(exc):
                raise
            logger.warning("out of GPU memory, retrying once: %s", exc)
        torch.cuda.empty_cache()
        return function()
