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
    codes   [K, length], collected window by window; the result of the job

A long prefill does not stop the running clips: each engine step prefills one piece of one clip
and decodes one column of all others ("Orca", Yu et al. 2022). All lengths are known in advance, so
the engine never waits for a code. Independent of text, audio and requests.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder import cuda, kernels, pattern
from musicgen.decoder.clip import Clip, Conditions, Window, windows
from musicgen.decoder.graph import WARM_UPS, Graphed
from musicgen.decoder.job import Job, Slot
from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import ROWS_PER_CLIP, SEED_RANGE, Sampling
from musicgen.decoder.state import NOISE_STEPS, State, decode_step

BATCHES = (1, 2, 4, 8, 16, 32)  # numbers of clips for which a step can be captured
BLOCKS_AHEAD = 2  # the host may be this many blocks of NOISE_STEPS steps ahead of the GPU

DONE = object()  # returned by `next` for a prefill without pieces left

Progress = Callable[[int, int], None]


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
        self.capture = lm.device.type == "cuda" if capture is None else capture
        # MUSICGEN_GRAPHS=0 is the operator's way out if captured steps fail on a GPU.
        self.eager = eager or os.environ.get("MUSICGEN_GRAPHS") == "0"
        self.ops = ops or (kernels.cpu_ops(lm.team) if lm.team else None)
        self.failed = False  # whether a step had an error; the owner of the engine resets it
        if lm.device.type == "cuda":
            cuda.configure_backends()
        columns = slot_columns(lm, max_length)
        self.state = State.empty(lm, slots, columns, max_prefix, shared_prefix is not None)
        if shared_prefix is not None:
            with torch.no_grad():
                lm.prefill_shared(shared_prefix, self.state.cache)
        self._waiting: deque[Job] = deque()
        self._slots: list[Slot | None] = [None] * slots
        self._captured: dict[int, tuple[Tensor, Graphed]] = {}  # by the number of clips
        self.chosen: dict[int, Ops] = {}  # by the number of clips
        self._next_prefill = 0  # index of the slot whose prefill is considered first
        self._steps = 0  # decode steps so far
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
        self._admit()
        self._prefill_one()
        running = [slot for slot in self._slots if slot and not slot.prefill]
        if running:
            try:
                self._decode(running)
            except Exception as exc:
                for slot in running:
                    self._fail(slot.index, slot.job, exc)

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
        given = torch.zeros(ROWS_PER_CLIP, 1, self.lm.config.dim, device=self.lm.device)
        cross = self.lm.config.cross_attention
        conditions = Conditions(cross=given) if cross else Conditions(prefix=given)
        self.generate([Clip(1, 0, Sampling(), [conditions])])
        if self.capture:
            for clips in _sizes(len(self._slots)):
                self._decode_step([0] * clips)

    def _choose_ops(self, clips: int) -> Ops:
        """The operations for a step of this many clips."""
        config = self.lm.config
        shape = kernels.Shape(config.dim, config.ffn_dim, config.head_dim, config.n_q * config.card)
        self.chosen[clips] = self.ops or kernels.choose(
            self.lm.device, self.lm.dtype, shape, ROWS_PER_CLIP * clips
        )
        return self.chosen[clips]

    def _check(self, clip: Clip) -> list[Window]:
        """The clip's windows. Raises ValueError if it cannot be decoded in them."""
        windows = self.windows(clip.prompt_length, clip.length)
        config, conditions = self.lm.config, clip.conditions
        cross = config.cross_attention
        longest = max((0 if c.given is None else c.given.shape[1] for c in conditions), default=0)
        codebooks = config.n_q if clip.prompt_codes is None else len(clip.prompt_codes)
        problems = {
            f"an audio prompt of {clip.prompt_length} frames leaves nothing to decode of "
            f"{clip.length}": not windows,
            f"{len(conditions)} conditions for {len(windows)} windows": (
                len(conditions) != len(windows)
            ),
            f"seed {clip.seed} is not in 0 .. {SEED_RANGE - 1}": not 0 <= clip.seed < SEED_RANGE,
            f"prompt of {codebooks} codebooks, not {config.n_q}": codebooks != config.n_q,
            f"the model {'needs' if cross else 'has no'} cross-attention conditions": any(
                (c.cross is not None) != cross for c in conditions
            ),
            f"a condition of {longest} positions, at most {self.max_prefix}": (
                longest > self.max_prefix
            ),
            f"conditions share more than the {self.shared_length} positions of the engine's "
            "shared prefix": any(
                not 0 <= cond <= uncond <= self.shared_length
                for cond, uncond in (c.shared for c in conditions)
            ),
        }
        for problem, found in problems.items():
            if found:
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
        config, index, span = self.lm.config, slot.index, slot.span
        steps = slot.job.window_steps[slot.window]
        sequence = pattern.interleave(
            slot.codes[:, span.start : span.stop], config.delays, config.special_token_id
        )
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
        slot.left = steps
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

    def _decode(self, running: list[Slot]) -> None:
        """One decode step of these clips; closes the windows that it completes."""
        noise = self.state.noise
        for slot in running:
            if slot.job.done_steps % noise.shape[1] == 0:
                noise[slot.index].exponential_(generator=slot.generator)
        self._limit_lead()
        self._decode_step([slot.index for slot in running])
        for slot in running:
            slot.job.done_steps += 1
            slot.left -= 1
            if slot.left == 0:
                try:
                    self._close_window(slot)
                except Exception as exc:
                    self._fail(slot.index, slot.job, exc)

    def _decode_step(self, indices: list[int]) -> None:
        """One decode step of the slots `indices`; a captured one for the smallest fitting batch."""
        if not self.capture:
            ops = self._choose_ops(len(indices))
            decode_step(self.lm, ops, self.state, torch.tensor(indices, device=self.lm.device))
            return
        clips = next(size for size in _sizes(len(self._slots)) if size >= len(indices))
        if clips not in self._captured:
            self._captured[clips] = self._capture_step(clips)
        slots, step = self._captured[clips]
        # Padding repeats the first slot, whose rows then compute and write the same values.
        slots.copy_(_pinned(indices + indices[:1] * (clips - len(indices)), slots), True)
        step()

    def _capture_step(self, clips: int) -> tuple[Tensor, Graphed]:
        """The slots tensor that the step of this many clips reads, and the captured step."""
        slots = torch.zeros(clips, dtype=torch.int64, device=self.lm.device)
        ops, state = self._choose_ops(clips), self.state
        step = Graphed(
            lambda: decode_step(self.lm, ops, state, slots),
            changed=(state.sequence, state.column, state.noise_step),
            eager=self.eager,
        )
        return slots, step

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

    def abort(self, exc: BaseException) -> None:
        """Make `exc` the result of all running and waiting clips."""
        for slot in filter(None, self._slots):
            self._fail(slot.index, slot.job, exc)
        while self._waiting:
            self._waiting.popleft().finish(exc)

    @property
    def description(self) -> str:
        """The operations of captured steps by number of clips, and whether graphs are used."""
        found: dict[str, list[int]] = {}
        for clips, ops in sorted(self.chosen.items()):
            found.setdefault(kernels.describe(ops), []).append(clips)
        texts = [
            name if len(found) == 1 else f"{name} ({', '.join(map(str, clips))} clips)"
            for name, clips in found.items()
        ]
        graphs = [not step.eager for _, step in self._captured.values()]
        if graphs:
            texts.append("CUDA graphs" if all(graphs) else "no CUDA graphs")
        return ", ".join(texts)

    def _fail(self, index: int, job: Job, exc: BaseException) -> None:
        self.failed = True
        self._slots[index] = None
        job.finish(exc)


def slot_columns(lm: LM, max_length: int) -> int:
    """Columns of a slot: those of the longest window, and those that a capture's warm-up writes."""
    return pattern.num_columns(max_length, lm.config.delays) + WARM_UPS


def _sizes(slots: int) -> list[int]:
    """The batch sizes for which steps of at most `slots` clips are captured."""
    return [size for size in BATCHES if size < slots] + [min(slots, BATCHES[-1])]


def _pinned(values: list[int], like: Tensor) -> Tensor:
    """A tensor of `values` that can be copied to the device of `like` without waiting for it."""
    tensor = torch.tensor(values)
    return tensor.pin_memory() if like.is_cuda else tensor
