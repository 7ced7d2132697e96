"""A clip on its way through the engine: what its caller holds, and what the engine knows of it."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder.clip import Clip, Window
from musicgen.decoder.lm import LM
from musicgen.decoder.state import UNKNOWN


class Job(Future[Tensor]):
    """A clip on its way; in the end its codes, [K, length] int64 on the decoder's device.

    `cancel()` works from any thread for as long as there is no result; the slot is then free
    before the next step. `done_steps` of `steps` decode steps are done.
    """

    def __init__(self, clip: Clip, spans: list[Window], lm: LM) -> None:
        super().__init__()
        self.clip = clip
        self.windows = spans
        filled = [clip.prompt_length, *(span.stop for span in spans[:-1])]
        delay = max(lm.config.delays)
        self.window_steps = [s.stop - f + delay for s, f in zip(spans, filled, strict=True)]
        self.steps = sum(self.window_steps)
        self.done_steps = 0
        self.submitted = perf_counter()
        self.admitted: float | None = None  # when it got a slot
        self.event = torch.cuda.Event() if lm.device.type == "cuda" else None
        self.mark()

    def acknowledge(self) -> bool:
        """Wake those who wait for a job that was cancelled; whether it is still wanted."""
        with suppress(RuntimeError):  # once is enough
            if self.cancelled():
                self.set_running_or_notify_cancel()
        return not self.cancelled()

    def finish(self, result: Tensor | Exception) -> None:
        """Set the codes, or what went wrong, unless there is a result or nobody wants one."""
        if self.done() or not self.set_running_or_notify_cancel():
            return
        if isinstance(result, Exception):
            self.set_exception(result)
        else:
            self.set_result(result)

    @property
    def waited(self) -> float:
        """Seconds without a slot."""
        return (self.admitted or perf_counter()) - self.submitted

    def mark(self) -> None:
        """Note the point on this thread's CUDA stream at which the tensors will be there."""
        if self.event:
            self.event.record()

    def result(self, timeout: float | None = None) -> Tensor:
        """The codes, also for this thread's CUDA stream."""
        codes = super().result(timeout)
        if self.event:
            self.event.synchronize()
        return codes


@dataclass
class Slot:
    """What the host knows of the clip in a slot."""

    job: Job
    index: int
    codes: Tensor  # [K, length], what there is of them
    generator: torch.Generator
    window: int = 0
    left: int = 0  # steps of this window
    prefill: Iterator[None] | None = None  # what is left of it

    @classmethod
    def of(cls, job: Job, index: int, lm: LM) -> "Slot":
        clip, config, device = job.clip, lm.config, lm.device
        given = [c.given for c in clip.conditions] + [clip.prompt_codes]
        if job.event:  # made on another thread's stream, whose memory they are
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
        return self.job.windows[self.window]
