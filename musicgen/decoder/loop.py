"""The one thread that decodes, for callers in many others. Sleeps while there is nothing to do."""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

from musicgen.decoder.clip import Clip
from musicgen.decoder.engine import Engine
from musicgen.decoder.job import Job


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
                except Exception as exc:  # of the loop itself, which must not end with it
                    self.engine.abort(exc)

    def _stream(self) -> AbstractContextManager[object]:
        """A stream of its own: what other threads ask of the GPU does not stand before the steps.

        It begins when all is done that made the engine.
        """
        device = self.engine.lm.device
        if device.type != "cuda":
            return nullcontext()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))
        return torch.cuda.stream(stream)

    def _wait(self) -> bool:
        """Until there is something to do; False when there never will be."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self.engine.busy)
            return not self._closed
