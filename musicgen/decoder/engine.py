"""Decodes clips: prefill, then one decode step after another, window by window.

All clips of a batch step together, each in its own slot with its own position, length, settings
and random generator; the host knows every length in advance, so nothing ever waits for a code.
Knows nothing of text, audio or requests.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import kernels, pattern
from .clip import Clip, Conditions, Window, windows
from .graph import Graphed
from .kernels import Ops
from .lm import LM, Cache
from .sampling import Sampling, SamplingRows

BATCHES = (1, 2, 4, 8, 16, 32)  # clips a step can be made for
NOISE_STEPS = {"cpu": 1, "cuda": 32}  # steps that noise is drawn for at a time: see State
BLOCKS_AHEAD = 2  # of NOISE_STEPS steps that the host may be ahead of the GPU
UNKNOWN = -1  # a code that is yet to be decoded
# Room in the caches comes in such steps, so that most requests fit into what is there.
CAPACITY_STEP, CROSS_STEP = 256, 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class State:
    """The static tensors of a batch of B clips: all that a decode step reads and writes.

    Their addresses stay as they are, so a step can be captured. `noise` [B, steps, K, card] is
    drawn outside of the step, by each clip's own generator and a constant number of steps at a
    time, so that no neighbour can change it. On the CPU that is one step, as audiocraft does.
    """

    sequence: Tensor  # [B, K, S] int64, in the delay pattern; UNKNOWN where not yet decoded
    column: Tensor  # [B] int64, the column of `sequence` that the next step reads
    last: Tensor  # [B] int64, where `column` stops: the last but a spare one, which is all known
    prefix: Tensor  # [B] int64, positions before the first column
    noise: Tensor
    noise_step: Tensor  # [B] int64
    sampling: SamplingRows
    cache: Cache
    positions: Tensor  # [capacity, dim] float32, the position embeddings

    @classmethod
    def empty(cls, lm: LM, clips: int, capacity: int, cross_capacity: int) -> "State":
        config, device = lm.config, lm.device

        def integers(*shape: int, value: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        steps = NOISE_STEPS[device.type]
        return cls(
            sequence=integers(clips, config.n_q, capacity, value=config.special_token_id),
            column=integers(clips, value=0),
            last=integers(clips, value=0),
            prefix=integers(clips, value=0),
            noise=torch.ones(clips, steps, config.n_q, config.card, device=device),
            noise_step=integers(clips, value=0),
            sampling=SamplingRows.empty(clips, device),
            cache=Cache.empty(lm, 2 * clips, capacity, cross_capacity),
            positions=lm.positions(capacity),
        )

    @property
    def room(self) -> tuple[int, int, int]:
        """How many clips, positions, and positions of cross-attention there are."""
        cache = self.cache
        return len(self.column), cache.keys.shape[3], cache.cross_keys.shape[3]

    def clips(self, start: int, stop: int) -> "State":
        """A view of some of the clips."""
        part = slice(start, stop)
        return State(
            sequence=self.sequence[part],
            column=self.column[part],
            last=self.last[part],
            prefix=self.prefix[part],
            noise=self.noise[part],
            noise_step=self.noise_step[part],
            sampling=self.sampling.clips(part),
            cache=self.cache.rows(slice(2 * start, 2 * stop)),
            positions=self.positions,
        )


def decode_step(lm: LM, ops: Ops, state: State) -> None:
    """Read one column of every clip of `state`, decode the next one, and move on to it, in place.

    A clip that is done steps on into its spare column, where there is nothing to decode.
    """
    batch = torch.arange(len(state.column), device=state.column.device)
    target = state.column + 1
    positions = state.prefix + state.column
    x = lm.embed(state.sequence[batch, :, state.column]) + state.positions[positions]
    logits = lm.step(
        x.repeat_interleave(2, dim=0), positions.repeat_interleave(2), state.cache, ops
    )
    codes = ops.sample(logits, state.noise[batch, state.noise_step], state.sampling)
    known = state.sequence[batch, :, target]
    state.sequence[batch, :, target] = torch.where(known == UNKNOWN, codes, known)
    torch.minimum(target, state.last, out=state.column)
    state.noise_step.add_(1).remainder_(state.noise.shape[1])


@dataclass
class Track:
    """A clip on its way: its codes so far and the steps at which its windows begin."""

    clip: Clip
    windows: list[Window]
    codes: Tensor  # [K, length]
    generator: torch.Generator
    starts: list[int] = field(default_factory=lambda: [0])  # and, last, the step after the end

    @classmethod
    def of(cls, clip: Clip, spans: list[Window], lm: LM) -> "Track":
        config, device = lm.config, lm.device
        codes = torch.full((config.n_q, clip.length), UNKNOWN, dtype=torch.int64, device=device)
        if clip.prompt_codes is not None:
            codes[:, : clip.prompt_length] = clip.prompt_codes.to(device)
        track = cls(clip, spans, codes, torch.Generator(device).manual_seed(clip.seed))
        filled = clip.prompt_length
        for span in spans:
            track.starts.append(track.starts[-1] + span.stop - filled + max(config.delays))
            filled = span.stop
        return track

    @property
    def steps(self) -> int:
        """How many decode steps the clip takes in all its windows."""
        return self.starts[-1]

    def filled(self, window: int) -> int:
        """Frames that are known when a window begins."""
        return self.windows[window - 1].stop if window else self.clip.prompt_length


class Engine:
    """Decodes batches of clips with one decoder. Not for two threads at once.

    A clip's codes depend on the clip alone, not on what shares its batch: exactly on the CPU and
    with the Triton kernels, approximately on CUDA without them.
    """

    def __init__(self, lm: LM, *, max_length: int, stride: int, eager: bool = False) -> None:
        """`max_length` frames are the longest window; `eager` runs every step uncaptured."""
        if not 0 < stride < max_length:
            raise ValueError(f"stride must be within 1 .. {max_length - 1}, not {stride}")
        self.lm = lm
        self.max_length = max_length
        self.stride = stride
        self.eager = eager
        # On CUDA state and steps are kept from one call to the next: captures hold addresses.
        self.static = lm.device.type == "cuda"
        self._state: State | None = None
        self._steps: dict[int, Graphed] = {}  # by the number of clips

    @torch.no_grad()
    def generate(self, clips: Sequence[Clip], progress: Progress | None = None) -> list[Tensor]:
        """The codes of each clip, [K, length] int64 on the decoder's device.

        `progress(done, total)` is told of every step; what it raises ends the call and leaves
        the engine ready for the next one. Raises ValueError for a clip that makes no sense.
        """
        tracks = [self._track(clip) for clip in clips]
        # Longest first: the clips that are still decoding are then always the first slots.
        queue = sorted(tracks, key=lambda track: -track.steps)
        groups = [queue[i : i + BATCHES[-1]] for i in range(0, len(queue), BATCHES[-1])]
        total = sum(group[0].steps for group in groups)
        done = itertools.count(1)
        for group in groups:
            self._decode(group, lambda: progress(next(done), total) if progress else None)
        return [track.codes for track in tracks]

    def warm_up(self) -> None:
        """Build kernels and capture the one-clip step, so that the first request need not."""
        if not self.static:
            return
        config = self.lm.config
        some = torch.zeros(2, 1, config.dim, device=self.lm.device)
        given = Conditions(cross=some) if config.cross_attention else Conditions(prefix=some)
        columns = pattern.num_columns(self.max_length, config.delays) + 1
        prefix = 0 if config.cross_attention else CAPACITY_STEP
        self._reserve(1, prefix + columns, CROSS_STEP)
        self.generate([Clip(length=1, seed=0, sampling=Sampling(), conditions=[given])])

    def choose_ops(self, clips: int) -> Ops:
        """The operations for a step of so many clips."""
        config = self.lm.config
        shape = kernels.Shape(config.dim, config.ffn_dim, config.head_dim, config.n_q * config.card)
        return kernels.choose(self.lm.device, self.lm.dtype, shape, 2 * clips)

    def _track(self, clip: Clip) -> Track:
        spans = windows(clip.prompt_length, clip.length, self.max_length, self.stride)
        if not spans:
            raise ValueError(f"a prompt of {clip.prompt_length} frames fills all {clip.length}")
        if len(clip.conditions) != len(spans):
            raise ValueError(f"{len(clip.conditions)} conditions for {len(spans)} windows")
        if not 0 <= clip.seed < 2**32:
            raise ValueError(f"seed {clip.seed} is not within 0 .. 2**32 - 1")
        n_q, wants_cross = self.lm.config.n_q, self.lm.config.cross_attention
        if clip.prompt_codes is not None and len(clip.prompt_codes) != n_q:
            raise ValueError(f"prompt of {len(clip.prompt_codes)} codebooks, not {n_q}")
        if any((c.cross is not None) != wants_cross for c in clip.conditions):
            raise ValueError(f"conditions for cross-attention must be given: {wants_cross}")
        return Track.of(clip, spans, self.lm)

    def _decode(self, tracks: list[Track], report: Callable[[], None]) -> None:
        """Run a group of at most BATCHES[-1] tracks, longest first, to its end."""
        state = self._room_for(tracks)
        marks: deque[torch.cuda.Event] = deque()
        for done in range(tracks[0].steps + 1):
            for slot, track in enumerate(tracks):
                if done in track.starts:
                    self._turn_window(track, track.starts.index(done), state.clips(slot, slot + 1))
            active = [track for track in tracks if track.steps > done]
            if not active:
                return
            if done % state.noise.shape[1] == 0:
                self._keep_pace(marks)
                for slot, track in enumerate(active):
                    state.noise[slot].exponential_(generator=track.generator)
            self._step(state, len(active))
            report()

    def _step(self, state: State, active: int) -> None:
        """One step of the first `active` clips, as part of the smallest batch that holds them."""
        if not self.static:
            decode_step(self.lm, self.choose_ops(active), state.clips(0, active))
            return
        clips = _batch(active)
        if clips not in self._steps:
            part, ops = state.clips(0, clips), self.choose_ops(clips)
            self._steps[clips] = Graphed(
                lambda: decode_step(self.lm, ops, part),
                changed=(part.sequence, part.column, part.noise_step),
                eager=self.eager,
            )
        self._steps[clips]()

    def _keep_pace(self, marks: deque[torch.cuda.Event]) -> None:
        """Keep the host a little ahead of the GPU, which so never waits, but not by a whole clip.

        Otherwise progress would run to its end at once, and leave nothing to cancel.
        """
        if self.lm.device.type == "cpu":
            return
        if len(marks) == BLOCKS_AHEAD:
            marks.popleft().synchronize()
        marks.append(torch.cuda.Event())
        marks[-1].record()

    def _room_for(self, tracks: Sequence[Track]) -> State:
        given = [c for track in tracks for c in track.clip.conditions]
        prefix = max(0 if c.prefix is None else c.prefix.shape[1] for c in given)
        cross = max(0 if c.cross is None else c.cross.shape[1] for c in given)
        longest = max(w.stop - w.start for track in tracks for w in track.windows)
        columns = pattern.num_columns(longest, self.lm.config.delays) + 1
        return self._reserve(len(tracks), prefix + columns, cross)

    def _reserve(self, clips: int, capacity: int, cross: int) -> State:
        """A state with at least that much room; the one from before, if it was kept and will do."""
        if not self.static:
            return State.empty(self.lm, clips, capacity, cross)
        clips = _batch(clips)
        capacity, cross = _round_up(capacity, CAPACITY_STEP), _round_up(cross, CROSS_STEP)
        if self._state is not None:
            held, had, had_cross = self._state.room
            if held >= clips and had >= capacity and had_cross >= cross:
                return self._state
            capacity, cross = max(capacity, had), max(cross, had_cross)
            self._state, self._steps = None, {}  # the memory is needed for what comes now
        self._state = State.empty(self.lm, clips, capacity, cross)
        return self._state

    def _turn_window(self, track: Track, index: int, slot: State) -> None:
        """Put away the window before, if any, and prefill the next, if any."""
        if index > 0:
            self._collect(track, index - 1, slot)
        if index < len(track.windows):
            self._prefill(track, index, slot)

    def _prefill(self, track: Track, index: int, slot: State) -> None:
        """Set up a one-clip view of the state for a window of a track."""
        config, window = self.lm.config, track.windows[index]
        conditions = track.clip.conditions[index]
        prompt = track.filled(index) - window.start
        sequence = pattern.interleave(
            track.codes[:, window.start : window.stop], config.delays, config.special_token_id
        )
        columns = sequence.shape[1]
        slot.sequence.fill_(config.special_token_id)
        slot.sequence[0, :, :columns] = sequence
        slot.column.fill_(prompt)
        slot.last.fill_(columns - 1)
        slot.sampling.set(0, track.clip.sampling, config.card)
        # The columns before `prompt` are all known; the first step reads that one.
        filled = self.lm.prefill(
            sequence[:, :prompt].T, conditions.prefix, conditions.cross, slot.cache
        )
        slot.prefix.fill_(filled - prompt)
        if index == 0:
            slot.noise_step.fill_(0)

    def _collect(self, track: Track, index: int, slot: State) -> None:
        """Write a finished window's codes into the track's."""
        window = track.windows[index]
        track.codes[:, window.start : window.stop] = pattern.deinterleave(
            slot.sequence[0], self.lm.config.delays, window.stop - window.start
        )


def _batch(clips: int) -> int:
    """The smallest batch that holds so many clips."""
    return next(size for size in BATCHES if size >= clips)


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
