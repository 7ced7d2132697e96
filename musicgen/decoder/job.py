"""Job: the future of a submitted clip. Slot: the engine's record of a job that is running."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder import cuda
from musicgen.decoder.clip import Clip, Window
from musicgen.decoder.lm import LM
from musicgen.decoder.state import UNKNOWN


class Job(Future[Tensor]):
    """The future of one clip's codes, [K, length] int64 on the decoder's device.

    `cancel()` works from any thread until there is a result; the slot is free before the next
    step. `done_steps` counts the decode steps that are done, out of `steps`.
    """

    def __init__(self, clip: Clip, windows: list[Window], lm: LM) -> None:
        super().__init__()
        self.clip = clip
        self.windows = windows
        filled = [clip.prompt_length, *(window.stop for window in windows[:-1])]
        delay = max(lm.config.delays)
        self.window_steps = [w.stop - f + delay for w, f in zip(windows, filled, strict=True)]
        self.steps = sum(self.window_steps)
        self.done_steps = 0
        self.submitted = perf_counter()
        self.admitted: float | None = None  # when it got a slot
        self.event = cuda.event() if lm.device.type == "cuda" else None
        self.mark()

    def acknowledge(self) -> bool:
        """Whether the job is still wanted; wakes the threads that wait for a cancelled one."""
        with suppress(RuntimeError):  # raised by the second call, which has nothing to do
            if self.cancelled():
                self.set_running_or_notify_cancel()
        return not self.cancelled()

    def finish(self, result: Tensor | BaseException) -> None:
        """Set the codes or the error, unless the job is done or cancelled."""
        if self.done() or not self.set_running_or_notify_cancel():
            return
        if isinstance(result, BaseException):
            self.set_exception(result)
        else:
            self.set_result(result)

    @property
    def waited(self) -> float:
        """Seconds between submission and admission to a slot (or now)."""
        return (self.admitted or perf_counter()) - self.submitted

    def mark(self) -> None:
        """Record the point on this thread's CUDA stream after which the tensors are ready."""
        if self.event:
            self.event.record()

    def result(self, timeout: float | None = None) -> Tensor:
        """The codes, also for this thread's CUDA stream."""
        codes = super().result(timeout)
        if self.event:
            self.event.synchronize()
            # Without this, their memory could be reused while this thread's stream reads it.
            codes.record_stream(torch.cuda.current_stream(codes.device))
        return codes


@dataclass
class Slot:
    """The host's record of the running job whose rows in the state are those of `index`."""

    job: Job
    index: int
    codes: Tensor  # [K, length]; UNKNOWN where not yet decoded
    generator: torch.Generator
    window: int = 0  # index of the current one
    left: int = 0  # decode steps left of the current window
    column: int = 0  # of the sequence, that the next step reads; the same as in the state
    prefill: Iterator[None] | None = None  # pieces left to prefill; None once all are done

    @classmethod
    def of(cls, job: Job, index: int, lm: LM) -> "Slot":
        """The slot of a job that is admitted."""
        clip, config, device = job.clip, lm.config, lm.device
        given = [c.given for c in clip.conditions] + [clip.prompt_codes]
        if job.event:
            # The tensors were made on another thread's stream: wait for them, and let the
            # allocator know that this stream uses them too.
            torch.cuda.current_stream().wait_event(job.event)
            for tensor in (tensor for tensor in given if tensor is not None and tensor.is_cuda):
                tensor.record_stream(torch.cuda.current_stream())
        shape = (config.n_q, clip.length)
        codes = torch.full(shape, UNKNOWN, dtype=torch.int64, device=device)
        if clip.prompt_codes is not None:
            codes[:, : clip.prompt_length] = clip.prompt_codes.to(device)
        return cls(job, index, codes, torch.Generator(device).manual_seed(clip.seed))

    @property
    def span(self) -> Window:
        """The current window."""
        return self.job.windows[self.window]
