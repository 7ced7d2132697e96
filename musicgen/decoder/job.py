"""Job: the future of a submitted clip. Slot: the engine's record of a job that is running."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder import cuda, pattern
from musicgen.decoder.clip import Clip, Window
from musicgen.decoder.lm import LM
from musicgen.decoder.state import UNKNOWN


class Codes(Future[Tensor]):
    """The future of codes [K, T] int64 on the decoder's device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.event = cuda.event() if device.type == "cuda" else None

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


class Part(Codes):
    """The future of the frames [start, stop) of a clip's codes, before the clip is complete."""

    def __init__(self, start: int, stop: int, device: torch.device) -> None:
        super().__init__(device)
        self.start = start
        self.stop = stop


class Job(Codes):
    """The future of one clip's codes, [K, length].

    `cancel()` works from any thread until there is a result; the slot is free before the next
    step. `done_steps` counts the decode steps that are done, out of `steps`.
    """

    def __init__(self, clip: Clip, windows: list[Window], lm: LM) -> None:
        super().__init__(lm.device)
        self.clip = clip
        self.windows = windows
        # Frames that are known when each window begins.
        self.filled = [clip.prompt_length, *(window.stop for window in windows[:-1])]
        delay = max(lm.config.delays)
        self.window_steps = [w.stop - f + delay for w, f in zip(windows, self.filled, strict=True)]
        self.steps = sum(self.window_steps)
        self.done_steps = 0
        self.submitted = perf_counter()
        self.admitted: float | None = None  # when it got a slot
        self.wanted: Part | None = None  # what a stream waits for
        self.device = lm.device
        self.mark()

    def part(self, start: int, stop: int) -> Part:
        """The future of a part of the codes; it stays undone if the job ends before.

        There is one at a time: ask for the next when this one is done.
        """
        self.wanted = part = Part(start, stop, self.device)
        return part

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

    @property
    def final(self) -> int:
        """How many of the clip's first frames no later step changes."""
        return max(self.job.filled[self.window], self.span.stop - self.left)

    def publish(self, sequence: Tensor, delays: Sequence[int]) -> None:
        """Make the result of the part that the job's stream waits for, if those frames are final.

        `sequence` [K, S] is the slot's, in the delay pattern. It is only read.
        """
        part = self.job.wanted
        if part is None or part.stop > self.final:
            return
        self.job.wanted = None
        start = self.span.start
        window = pattern.deinterleave(sequence, delays, max(0, part.stop - start))
        earlier = self.codes[:, part.start : min(start, part.stop)]
        codes = torch.cat([earlier, window[:, max(0, part.start - start) :]], dim=1)
        part.mark()
        part.set_result(codes)
