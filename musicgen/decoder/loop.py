"""The decode thread: steps the engine for callers in many threads; sleeps while it is idle."""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

from musicgen.decoder import cuda, daemon, faults
from musicgen.decoder.clip import Clip
from musicgen.decoder.engine import Engine
from musicgen.decoder.job import Job

# Steps in a row that fail before the engine has to prove that it can still decode.
FAILURES = 3


class Loop:
    """Owns an engine: only this loop's thread calls `engine.step`. `close` ends the thread."""

    def __init__(self, engine: Engine) -> None:
        """Return once the engine is warm; raise the exception of a warm-up that failed."""
        self.engine = engine
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        warm = threading.Event()
        self._thread = daemon.start("decode", lambda: self._run(warm), self.close)
        warm.wait()
        if self._failure:
            raise self._failure

    def submit(self, clip: Clip) -> Job:
        """Queue a clip. Raises ValueError for a clip that the engine cannot decode."""
        with self._changed:
            if self._failure:
                raise RuntimeError("the decode thread has ended") from self._failure
            job = self.engine.submit(clip)
            self._changed.notify()
        return job

    def close(self, wait: bool = False) -> None:
        """End the thread after its current step; clips that are not done by then stay undone.

        With `wait`, return after the thread has ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait:
            self._thread.join()

    def _run(self, warm: threading.Event) -> None:
        try:
            with self._stream():
                self.engine.warm_up()
                warm.set()
                while self._wait():
                    self._step()
        except BaseException as exc:
            with self._changed:  # no clip is submitted after this
                self._failure = exc
                self.engine.abort(exc)
        finally:
            warm.set()

    def _step(self) -> None:
        """One engine step. After errors, ends the process if it cannot decode any more."""
        try:
            self.engine.step()
        except Exception as exc:  # an error of the engine itself must not end the thread
            self.engine.abort(exc)
            self.engine.failures += 1
        if self.engine.errors:
            cuda.exit_if_context_is_lost(self.engine.lm.device)
        if self.engine.failures >= FAILURES:
            self._end_unless_it_decodes()

    def _end_unless_it_decodes(self) -> None:
        """End the process if a clip cannot be decoded that was decoded in the warm-up."""
        try:
            self.engine.decode_trial()
        except Exception as exc:
            if not faults.is_exhausted(exc):
                faults.end_process(f"{FAILURES} decode steps and a trial have failed ({exc!r})")
        self.engine.failures = 0

    def _stream(self) -> AbstractContextManager[object]:
        """A CUDA stream for this thread, so that decode steps do not queue behind other work.

        It starts after all the work that built the engine.
        """
        device = self.engine.lm.device
        if device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(cuda.decode_stream(device))

    def _wait(self) -> bool:
        """Wait for work; False once the loop is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.engine.busy)
            return not self._closed
