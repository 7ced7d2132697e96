"""The one thread that decodes, for callers in many others. Sleeps while there is nothing to do."""

import threading
from contextlib import nullcontext

import torch

from .clip import Clip
from .engine import Engine
from .job import Job


class Loop:
    """Owns an engine: only its thread calls `engine.step`. Ends with `close`."""

    def __init__(self, engine: Engine) -> None:
        """Returns when the engine is warm; raises what went wrong in that."""
        self.engine = engine
        self._news = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        warm = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(warm,), name="decode", daemon=True)
        self._thread.start()
        warm.wait()
        if self._failure:
            raise self._failure

    def submit(self, clip: Clip) -> Job:
        """Queue a clip. Raises ValueError for one that makes no sense."""
        job = self.engine.submit(clip)
        with self._news:
            self._news.notify()
        return job

    def close(self) -> None:
        """End the thread; what is not decoded by then never will be."""
        with self._news:
            self._closed = True
            self._news.notify()

    def _run(self, warm: threading.Event) -> None:
        device = self.engine.lm.device
        # A stream of its own: what other threads ask of the GPU does not stand before the steps.
        with torch.cuda.stream(torch.cuda.Stream(device)) if _is_cuda(device) else nullcontext():
            try:
                self.engine.warm_up()
            except BaseException as exc:
                self._failure = exc
                return
            finally:
                warm.set()
            while self._wait():
                try:
                    self.engine.step()
                except Exception as exc:  # of the loop itself, which must not end with it
                    self.engine.abort(exc)

    def _wait(self) -> bool:
        """Until there is something to do; False when there never will be."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self.engine.busy)
            return not self._closed


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
