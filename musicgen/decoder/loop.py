"""The decode thread: steps the engine for callers in many threads; sleeps while it is idle."""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

from musicgen.decoder.clip import Clip
from musicgen.decoder.engine import Engine
from musicgen.decoder.job import Job


class Loop:
    """Owns an engine: only this loop's thread calls `engine.step`. `close` ends the thread."""

    def __init__(self, engine: Engine) -> None:
        """Return once the engine is warm; raise the exception of a warm-up that failed."""
        self.engine = engine
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        warm = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(warm,), name="decode", daemon=True)
        self._thread.start()
        warm.wait()
        if self._failure:
            raise self._failure

    def submit(self, clip: Clip) -> Job:
        """Queue a clip. Raises ValueError for a clip that the engine cannot decode."""
        job = self.engine.submit(clip)
        with self._changed:
            self._changed.notify()
        return job

    def close(self) -> None:
        """End the thread after its current step; clips that are not done by then stay undone."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self, warm: threading.Event) -> None:
        with self._stream():
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
                except Exception as exc:  # an error of the loop itself must not end the thread
                    self.engine.abort(exc)

    def _stream(self) -> AbstractContextManager[object]:
        """A CUDA stream for this thread, so that decode steps do not queue behind other work.

        It starts after all the work that built the engine.
        """
        device = self.engine.lm.device
        if device.type != "cuda":
            return nullcontext()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))
        return torch.cuda.stream(stream)

    def _wait(self) -> bool:
        """Wait for work; False once the loop is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.engine.busy)
            return not self._closed
