"""Decodes all running clips together, one decode step after another (continuous batching).

    Clip    the input of a caller: length, seed, sampling settings, conditions, prompt codes
      |     submit()
      v
    Job     the future of the clip's codes; waiting, in the order of submission
      |     admitted when a slot is free
      v
    Slot i  a running job: prefill one piece per step, then one decode step after another
      |     State.sequence[i], .column[i], .noise[i], .sampling[i]
      v
    rows    ROWS_PER_CLIP rows of the key-value cache from ROWS_PER_CLIP * i on: conditional, un-
      |     conditional; all rows of all running slots are one batch of the decode step
      v
    codes   [K, length], collected window by window; the result of the job. A stream gets the
            frames that are final before that, in parts (`Job.part`)

A long prefill does not stop the running clips: each engine step prefills one piece of one clip
and decodes one column of all others ("Orca", Yu et al. 2022). All lengths are known in advance, so
the engine never waits for a code. Independent of text, audio and requests.

A decode step that fails is tried again with each half of its clips, so that an error that one clip
causes ends that clip alone, and one for lack of memory as few as possible. This assumes that a step
that raises has written to its own clips only, and that the device still computes; the decode
thread (loop.py) tests the latter.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder import cuda, faults, pattern
from musicgen.decoder.clip import Clip, Conditions, Window, problems, windows
from musicgen.decoder.decode_steps import BATCHES, DecodeSteps, slot_columns
from musicgen.decoder.job import Job, Slot
from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import ROWS_PER_CLIP, Sampling
from musicgen.decoder.state import NOISE_STEPS, State

BLOCKS_AHEAD = 2  # the host may be this many blocks of NOISE_STEPS steps ahead of the GPU

DONE = object()  # returned by `next` for a prefill without pieces left

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


class Engine:
    """Decodes clips with one decoder. `submit` is thread-safe; all else belongs to one thread.

    A clip's codes depend on the clip alone, not on its slot, its neighbours or when it arrived:
    exactly on the CPU and with the Triton kernels, approximately on CUDA without them.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_length: int,
        stride: int,
        slots: int = BATCHES[-1],
        max_prefix: int = 256,
        shared_prefix: Tensor | None = None,
        capture: bool | None = None,
        eager: bool = False,
        ops: Ops | None = None,
    ) -> None:
        """`max_length` is the longest window in frames, `max_prefix` the longest condition.

        Conditions may begin with `shared_prefix` [P, dim], which is computed, stored and (by the
        Triton kernels) read once for all clips. Memory for all slots is reserved here (a CPU
        provides it on first use), so nothing grows or moves while clips decode.

        For tests and benchmarks: `capture` says whether steps are captured, as they are on CUDA;
        `eager` runs the function of each captured step instead of its graph; `ops` replaces the
        operations that suit the device.
        """
        if not 0 < stride < max_length:
            raise ValueError(f"stride must be within 1 .. {max_length - 1}, not {stride}")
        self.lm = lm
        self.max_length = max_length
        self.stride = stride
        self.max_prefix = max_prefix
        self.shared_length = 0 if shared_prefix is None else len(shared_prefix)
        # Steps in a row in which clips failed, but not for lack of memory, and none was decoded.
        self.failures = 0
        self.errors = 0  # of the last step, but for lack of memory
        if lm.device.type == "cuda":
            cuda.configure_backends()
        columns = slot_columns(lm, max_length)
        self.state = State.empty(lm, slots, columns, max_prefix, shared_prefix is not None)
        self.decode_steps = DecodeSteps(lm, self.state, capture, eager, ops)
        if shared_prefix is not None:
            with torch.no_grad():
                lm.prefill_shared(shared_prefix, self.state.cache)
        self._waiting: deque[Job] = deque()
        self._slots: list[Slot | None] = [None] * slots
        self._next_prefill = 0  # index of the slot whose prefill is considered first
        self._steps = 0  # decode steps so far
        self._retried = False  # whether a step was ever tried again
        self._marks: deque[torch.cuda.Event] = deque()

    def submit(self, clip: Clip) -> Job:
        """Queue a clip. Raises ValueError for a clip that this engine cannot decode."""
        job = Job(clip, self._check(clip), self.lm)
        self._waiting.append(job)
        return job

    def windows(self, prompt_length: int, length: int) -> list[Window]:
        """The windows in which a clip of `length` frames is decoded after its audio prompt."""
        return windows(prompt_length, length, self.max_length, self.stride)

    @property
    def slots(self) -> int:
        """How many clips can be decoded at once."""
        return len(self._slots)

    @property
    def busy(self) -> bool:
        """Whether a clip is waiting or running."""
        return bool(self._waiting) or any(self._slots)

    @torch.no_grad()
    def step(self) -> None:
        """Admit waiting clips, prefill one piece of one clip, decode one column of all others.

        Does not raise: an error becomes the result of the clips that it concerns.
        """
        for slot in filter(None, self._slots):
            if slot.job.cancelled():
                slot.job.acknowledge()
                self._slots[slot.index] = None
        self.errors = 0
        self._admit()
        self._prefill_one()
        decoded = self._decode([slot for slot in self._slots if slot and not slot.prefill])
        for slot in filter(None, self._slots):
            if slot.job.wanted:
                self._publish(slot)
        if decoded:
            self.failures = 0
        elif self.errors:
            self.failures += 1

    def generate(self, clips: Sequence[Clip], progress: Progress | None = None) -> list[Tensor]:
        """The codes of each clip, decoded by the calling thread.

        `progress(done, total)` counts the steps of all clips; an exception from it cancels them.
        Raises ValueError for a clip that this engine cannot decode.
        """
        jobs = [self.submit(clip) for clip in clips]
        total, seen = sum(job.steps for job in jobs), 0
        try:
            while not all(job.done() for job in jobs):
                self.step()
                done = sum(job.done_steps for job in jobs)
                if progress and done > seen:
                    progress(done, total)
                seen = done
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return [job.result() for job in jobs]

    def warm_up(self) -> None:
        """Compile all kernels and capture a step for every batch size, before the first request."""
        self.decode_trial()
        self.decode_steps.capture_all()

    def decode_trial(self) -> None:
        """Decode a clip of one frame; raises its error."""
        given = torch.zeros(ROWS_PER_CLIP, 1, self.lm.config.dim, device=self.lm.device)
        cross = self.lm.config.cross_attention
        conditions = Conditions(cross=given) if cross else Conditions(prefix=given)
        self.generate([Clip(1, 0, Sampling(), [conditions])])

    def _check(self, clip: Clip) -> list[Window]:
        """The clip's windows. Raises ValueError if it cannot be decoded in them."""
        windows = self.windows(clip.prompt_length, clip.length)
        found = problems(clip, windows, self.lm.config, self.max_prefix, self.shared_length)
        for problem in found:
            raise ValueError(problem)
        return windows

    def _admit(self) -> None:
        """Admit waiting jobs to free slots, first come, first served."""
        for index in range(len(self._slots)):
            while self._slots[index] is None and self._waiting:
                job = self._waiting.popleft()
                if not job.acknowledge():
                    continue
                job.admitted = perf_counter()
                try:
                    slot = self._slots[index] = Slot.of(job, index, self.lm)
                    self._open_window(slot)
                except Exception as exc:  # mostly a lack of memory, which concerns this job only
                    self._fail(index, job, exc)

    def _open_window(self, slot: Slot) -> None:
        """Write the known codes of a window into the slot, and start its prefill."""
        config, index = self.lm.config, slot.index
        steps = slot.job.window_steps[slot.window]
        sequence = self._known_sequence(slot)
        columns = sequence.shape[1]
        known = columns - 1 - steps  # the first step reads the column after these
        conditions = slot.job.clip.conditions[slot.window]
        before = 0 if conditions.prefix is None else conditions.prefix.shape[1]
        state = self.state
        state.sequence[index].fill_(config.special_token_id)
        state.sequence[index, :, :columns] = sequence
        state.column[index].fill_(known)
        state.prefix[index].fill_(before)
        if slot.window == 0:
            state.noise_step[index].fill_(0)
            state.sampling.set(index, slot.job.clip.sampling, config.card)
        slot.left, slot.column = steps, known
        first = ROWS_PER_CLIP * index
        for row, length in enumerate(conditions.shared, first):
            state.cache.copy_shared_prefix(row, length)
        slot.prefill = self.lm.prefill(
            sequence[:, :known].T,
            conditions.prefix,
            conditions.cross,
            state.cache.rows(slice(first, first + ROWS_PER_CLIP)),
            conditions.shared,
        )

    def _prefill_one(self) -> None:
        """Prefill one piece of one clip; the clips that prefill take turns."""
        order = self._slots[self._next_prefill :] + self._slots[: self._next_prefill]
        for slot in order:
            if slot and slot.prefill:
                self._next_prefill = slot.index + 1
                try:
                    if next(slot.prefill, DONE) is DONE:
                        slot.prefill = None
                except Exception as exc:
                    self._fail(slot.index, slot.job, exc)
                return

    def _known_sequence(self, slot: Slot) -> Tensor:
        """The sequence [K, S] of the slot's window as it was when the window began."""
        codes = slot.codes[:, slot.span.start : slot.span.stop]
        return pattern.interleave(codes, self.lm.config.delays, self.lm.config.special_token_id)

    def _decode(self, running: list[Slot]) -> bool:
        """One decode step of these clips; whether a clip was decoded. Closes completed windows."""
        ready = [slot for slot in running if self._draw_noise(slot)]
        if not ready:
            return False
        decoded = self._decode_or_fail(ready)
        for slot in decoded:
            slot.job.done_steps += 1
            slot.left -= 1
            slot.column += 1
            if slot.left == 0:
                try:
                    self._close_window(slot)
                except Exception as exc:
                    self._fail(slot.index, slot.job, exc)
        return bool(decoded)

    def _draw_noise(self, slot: Slot) -> bool:
        """Draw the noise of the next steps if none is left; False if the clip fails by that."""
        noise = self.state.noise
        try:
            if slot.job.done_steps % noise.shape[1] == 0:
                noise[slot.index].exponential_(generator=slot.generator)
        except Exception as exc:
            self._fail(slot.index, slot.job, exc)
            return False
        return True

    def _decode_or_fail(self, slots: list[Slot]) -> list[Slot]:
        """One decode step; the slots for which it worked, alone or beside others.

        If it fails, the slots are rewound and each half is tried again.
        """
        try:
            self._limit_lead()
            self.decode_steps([slot.index for slot in slots])
            return slots
        except Exception as exc:
            if len(slots) == 1:
                self._fail(slots[0].index, slots[0].job, exc)
                return []
            self._log_retry(len(slots), exc)
        try:
            self._rewind(slots)
        except Exception as exc:
            for slot in slots:
                self._fail(slot.index, slot.job, exc)
            return []
        half = len(slots) // 2
        return self._decode_or_fail(slots[:half]) + self._decode_or_fail(slots[half:])

    def _rewind(self, slots: list[Slot]) -> None:
        """Restore what a failed step may have advanced; the noise of the step is still there.

        A repeated step writes the same keys and values to the same positions again.
        """
        state = self.state
        for slot in slots:
            target = slot.column + 1
            state.sequence[slot.index, :, target] = self._known_sequence(slot)[:, target]
            state.column[slot.index].fill_(slot.column)
            state.noise_step[slot.index].fill_(slot.job.done_steps % state.noise.shape[1])

    def _limit_lead(self) -> None:
        """Wait if the host is too far ahead of the GPU; a small lead keeps the GPU busy.

        Without a limit the host would queue whole clips at once: their progress would be wrong, and
        they could not be cancelled.
        """
        self._steps += 1
        if self.lm.device.type == "cpu" or self._steps % NOISE_STEPS["cuda"]:
            return
        if len(self._marks) == BLOCKS_AHEAD:
            self._marks.popleft().synchronize()
        self._marks.append(cuda.event())
        self._marks[-1].record()

    def _close_window(self, slot: Slot) -> None:
        """Collect the codes of a finished window; open the next window, or finish the job."""
        span, delays = slot.span, self.lm.config.delays
        slot.codes[:, span.start : span.stop] = pattern.deinterleave(
            self.state.sequence[slot.index], delays, span.stop - span.start
        )
        slot.window += 1
        if slot.window < len(slot.job.windows):
            self._open_window(slot)
            return
        self._slots[slot.index] = None
        slot.job.mark()
        slot.job.finish(slot.codes)

    def _publish(self, slot: Slot) -> None:
        """Give a stream the part of the codes that it waits for, if that is final."""
        try:
            slot.publish(self.state.sequence[slot.index], self.lm.config.delays)
        except Exception as exc:
            self._fail(slot.index, slot.job, exc)

    def abort(self, exc: BaseException) -> None:
        """Make `exc` the result of all running and waiting clips."""
        for slot in filter(None, self._slots):
            self._fail(slot.index, slot.job, exc)
        while self._waiting:
            self._waiting.popleft().finish(exc)

    def _log_retry(self, clips: int, exc: Exception) -> None:
        """Log that a step is tried again; once, because the next steps may fail alike."""
        if not self._retried:
            logger.error("a decode step of %d clips failed; trying halves", clips, exc_info=exc)
        self._retried = True

    def _fail(self, index: int, job: Job, exc: BaseException) -> None:
        self.errors += not faults.is_exhausted(exc)
        self._slots[index] = None
        job.finish(exc)
