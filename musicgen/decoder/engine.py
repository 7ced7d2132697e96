"""Decodes clips in slots, all of them together: one decode step after another, window by window.

A clip waits for a free slot, is prefilled piece by piece while its neighbours go on decoding, and
leaves when it is done or cancelled ("continuous batching": Yu et al. 2022, "Orca"). Every slot has
its own position, length, settings and random generator. The host knows every length in advance, so
the loop never waits for a code. Knows nothing of text, audio or requests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from musicgen.decoder import kernels, pattern
from musicgen.decoder.clip import Clip, Conditions, Window, windows
from musicgen.decoder.graph import WARM_UPS, Graphed
from musicgen.decoder.job import Job, Slot
from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import SEED_RANGE, Sampling
from musicgen.decoder.state import NOISE_STEPS, State, decode_step

BATCHES = (1, 2, 4, 8, 16, 32)  # clips a step can be made for
BLOCKS_AHEAD = 2  # of NOISE_STEPS steps that the host may be ahead of the GPU

Progress = Callable[[int, int], None]


class Engine:
    """Decodes clips with one decoder. `submit` is for any thread, all else for one at a time.

    A clip's codes depend on the clip alone, not on its slot, its neighbours or when it came:
    exactly on the CPU and with the Triton kernels, approximately on CUDA without them.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_length: int,
        stride: int,
        slots: int = BATCHES[-1],
        prefix: int = 256,
        shared: Tensor | None = None,
        eager: bool = False,
    ) -> None:
        """`max_length` frames are the longest window; `prefix` positions the longest condition.
        Conditions may begin with `shared` [P, dim], which is then computed, kept and read once.

        Memory for `slots` clips is taken at once (on a CPU when it is first touched), so nothing
        has to grow, or move, while clips decode. `eager` runs every step uncaptured.
        """
        if not 0 < stride < max_length:
            raise ValueError(f"stride must be within 1 .. {max_length - 1}, not {stride}")
        self.lm = lm
        self.max_length = max_length
        self.stride = stride
        self.prefix = prefix
        self.shared_length = 0 if shared is None else len(shared)
        self.eager = eager
        # On CUDA steps are captured, for a few sizes of batch.
        self.static = lm.device.type == "cuda"
        columns = slot_columns(lm, max_length)
        self.state = State.empty(lm, slots, columns, prefix, shared is not None)
        if shared is not None:
            with torch.no_grad():
                lm.prefill_shared(shared, self.state.cache)
        self._waiting: deque[Job] = deque()
        self._slots: list[Slot | None] = [None] * slots
        self._steps: dict[int, tuple[Tensor, Graphed]] = {}  # by the number of clips
        self._turn = 0  # the slot that is prefilled next
        self._count = 0  # steps so far
        self._marks: deque[torch.cuda.Event] = deque()

    def submit(self, clip: Clip) -> Job:
        """Queue a clip. Raises ValueError for one that makes no sense."""
        job = Job(clip, self._check(clip), self.lm)
        self._waiting.append(job)
        return job

    def windows(self, prompt_length: int, length: int) -> list[Window]:
        """The windows that a clip of `length` frames is decoded in, after its audio prompt."""
        return windows(prompt_length, length, self.max_length, self.stride)

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._waiting) or any(self._slots)

    @torch.no_grad()
    def step(self) -> None:
        """Admit who waits, prefill a piece of one clip, decode one column of all others.

        Raises nothing: what goes wrong becomes the result of the clips that it concerns.
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
        """The codes of each clip, decoded by this very thread.

        `progress(done, total)` counts the steps of all clips; what it raises cancels them. Raises
        ValueError for a clip that makes no sense.
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
        """Compile what is compiled and capture every step, so that no request has to wait."""
        given = torch.zeros(2, 1, self.lm.config.dim, device=self.lm.device)
        cross = self.lm.config.cross_attention
        conditions = Conditions(cross=given) if cross else Conditions(prefix=given)
        self.generate([Clip(1, 0, Sampling(), [conditions])])
        if self.static:
            for clips in _sizes(len(self._slots)):
                self._step([0] * clips)

    def choose_ops(self, clips: int) -> Ops:
        """The operations for a step of so many clips."""
        config = self.lm.config
        shape = kernels.Shape(config.dim, config.ffn_dim, config.head_dim, config.n_q * config.card)
        return kernels.choose(self.lm.device, self.lm.dtype, shape, 2 * clips)

    def _check(self, clip: Clip) -> list[Window]:
        """The clip's windows; raises ValueError if it cannot be decoded in them."""
        spans = self.windows(clip.prompt_length, clip.length)
        config, conditions = self.lm.config, clip.conditions
        cross = config.cross_attention
        longest = max((0 if c.given is None else c.given.shape[1] for c in conditions), default=0)
        codebooks = config.n_q if clip.prompt_codes is None else len(clip.prompt_codes)
        problems = {
            f"a prompt of {clip.prompt_length} frames fills all {clip.length}": not spans,
            f"{len(conditions)} conditions for {len(spans)} windows": len(conditions) != len(spans),
            f"seed {clip.seed} is not in 0 .. {SEED_RANGE - 1}": not 0 <= clip.seed < SEED_RANGE,
            f"prompt of {codebooks} codebooks, not {config.n_q}": codebooks != config.n_q,
            f"conditions for cross-attention must be given: {cross}": any(
                (c.cross is not None) != cross for c in conditions
            ),
            f"a condition of {longest} positions, at most {self.prefix}": longest > self.prefix,
            f"conditions share more than the engine's {self.shared_length} positions": any(
                not 0 <= first <= null <= self.shared_length
                for first, null in (c.shared for c in conditions)
            ),
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(problem)
        return spans

    def _admit(self) -> None:
        """Give free slots to those who wait, in the order in which they came."""
        for index in range(len(self._slots)):
            while self._slots[index] is None and self._waiting:
                job = self._waiting.popleft()
                if not job.acknowledge():
                    continue
                job.admitted = perf_counter()
                try:
                    slot = self._slots[index] = Slot.of(job, index, self.lm)
                    self._open_window(slot)
                except Exception as exc:  # memory, mostly; the neighbours have theirs
                    self._fail(index, job, exc)

    def _open_window(self, slot: Slot) -> None:
        """Write what is known of a window into the slot, and begin its prefill."""
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
        for row, length in enumerate(conditions.shared, 2 * index):
            state.cache.share(row, length)
        slot.prefill = self.lm.prefill(
            sequence[:, :known].T,
            conditions.prefix,
            conditions.cross,
            state.cache.rows(slice(2 * index, 2 * index + 2)),
            conditions.shared,
        )

    def _prefill_one(self) -> None:
        """One piece of one clip's prefill: the clips that prefill take device_lock."""
        order = self._slots[self._turn :] + self._slots[: self._turn]
        for slot in order:
            if slot and slot.prefill:
                self._turn = slot.index + 1
                try:
                    if next(slot.prefill, self) is self:
                        slot.prefill = None
                except Exception as exc:
                    self._fail(slot.index, slot.job, exc)
                return

    def _decode(self, running: list[Slot]) -> None:
        """One step of these clips, and what follows for those at a window's end."""
        noise = self.state.noise
        for slot in running:
            if slot.job.done_steps % noise.shape[1] == 0:
                noise[slot.index].exponential_(generator=slot.generator)
        self._keep_pace()
        self._step([slot.index for slot in running])
        for slot in running:
            slot.job.done_steps += 1
            slot.left -= 1
            if slot.left == 0:
                try:
                    self._close_window(slot)
                except Exception as exc:
                    self._fail(slot.index, slot.job, exc)

    def _step(self, indices: list[int]) -> None:
        """One step of the clips in these slots; captured ones in the smallest batch for them."""
        if not self.static:
            ops = self.choose_ops(len(indices))
            decode_step(self.lm, ops, self.state, torch.tensor(indices, device=self.lm.device))
            return
        clips = next(size for size in _sizes(len(self._slots)) if size >= len(indices))
        if clips not in self._steps:
            self._steps[clips] = self._capture(clips)
        slots, step = self._steps[clips]
        # A place too many repeats the first clip, which computes and writes the same.
        slots.copy_(_pinned(indices + indices[:1] * (clips - len(indices)), slots), True)
        step()

    def _capture(self, clips: int) -> tuple[Tensor, Graphed]:
        slots = torch.zeros(clips, dtype=torch.int64, device=self.lm.device)
        ops, state = self.choose_ops(clips), self.state
        step = Graphed(
            lambda: decode_step(self.lm, ops, state, slots),
            changed=(state.sequence, state.column, state.noise_step),
            eager=self.eager,
        )
        return slots, step

    def _keep_pace(self) -> None:
        """Let the host run ahead of the GPU, so that the GPU never waits, but not by a whole clip.

        Otherwise progress would run to its end at once, and leave nothing to cancel.
        """
        self._count += 1
        if self.lm.device.type == "cpu" or self._count % NOISE_STEPS["cuda"]:
            return
        if len(self._marks) == BLOCKS_AHEAD:
            self._marks.popleft().synchronize()
        self._marks.append(torch.cuda.Event())
        self._marks[-1].record()

    def _close_window(self, slot: Slot) -> None:
        """Collect a finished window's codes; open the next one, or be done."""
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

    def abort(self, exc: Exception) -> None:
        """Make `exc` the result of all that is decoding."""
        for slot in filter(None, self._slots):
            self._fail(slot.index, slot.job, exc)

    def _fail(self, index: int, job: Job, exc: Exception) -> None:
        self._slots[index] = None
        job.finish(exc)


def slot_columns(lm: LM, max_length: int) -> int:
    """Columns of a slot: the longest window's, and those that a capture's trial runs touch."""
    return pattern.num_columns(max_length, lm.config.delays) + WARM_UPS


def _sizes(slots: int) -> list[int]:
    """The batches that steps of at most so many clips are made for."""
    return [size for size in BATCHES if size < slots] + [min(slots, BATCHES[-1])]


def _pinned(values: list[int], like: Tensor) -> Tensor:
    """Values to copy onto a device without waiting for it."""
    made = torch.tensor(values)
    return made.pin_memory() if like.is_cuda else made
