"""Decodes clips: prefill, then one decode step after another, window by window.

All clips of a batch step together, each in its own slot with its own position, length, settings
and random generator; the host knows every length in advance, so nothing ever waits for a code.
Knows nothing of text, audio or requests.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import kernels, pattern
from .kernels import Ops
from .lm import LM, Cache
from .sampling import Sampling, SamplingRows, guide

BATCHES = (1, 2, 4, 8, 16, 32)  # clips a step can be made for
NOISE_STEPS = {"cpu": 1, "cuda": 32}  # steps that noise is drawn for at a time: see State
UNKNOWN = -1  # a code that is yet to be decoded

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conditions:
    """What one window of one clip is conditioned on; row 0 the condition, row 1 its null."""

    prefix: Tensor | None = None  # [2, P, dim], prepended to the codes
    cross: Tensor | None = None  # [2, L, dim], attended to by cross-attention


@dataclass(frozen=True)
class Clip:
    """One clip to decode."""

    length: int  # frames, the prompt included
    seed: int  # 0 .. 2**32 - 1
    sampling: Sampling
    conditions: Sequence[Conditions]  # one per window, in order
    prompt_codes: Tensor | None = None  # [K, T0], T0 < length

    @property
    def prompt_length(self) -> int:
        return 0 if self.prompt_codes is None else self.prompt_codes.shape[-1]


@dataclass(frozen=True)
class Window:
    """The frames [start, stop) of a clip that are in the decoder's sight at once."""

    start: int
    stop: int


def windows(prompt: int, length: int, max_length: int, stride: int) -> list[Window]:
    """The windows that a clip of `length` frames is decoded in, after `prompt` known ones.

    As audiocraft's (models/musicgen.py `_generate_tokens`): at 0, stride, 2 stride, ..., at most
    max_length long, each prompted by what is already there. Those with nothing left to decode,
    on which audiocraft fails, are left out.
    """
    found: list[Window] = []
    for start in itertools.count(0, stride):
        if prompt >= length:
            return found
        stop = min(start + max_length, length)
        if stop > prompt:
            found.append(Window(start, stop))
            prompt = stop
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class State:
    """The static tensors of a batch of B clips: all that a decode step reads and writes.

    Their addresses stay as they are, so a step can be captured. `noise` [B, steps, K, card] is
    drawn outside of the step, by each clip's own generator and a constant number of steps at a
    time, so that no neighbour can change it. On the CPU that is one step, as audiocraft does.
    """

    sequence: Tensor  # [B, K, S] int64, in the delay pattern; UNKNOWN where not yet decoded
    column: Tensor  # [B] int64, the column of `sequence` that the next step decodes
    last: Tensor  # [B] int64, where `column` stops: a spare one without unknown codes
    prefix: Tensor  # [B] int64, positions before the first column
    noise: Tensor
    noise_step: Tensor  # [B] int64
    sampling: SamplingRows
    cache: Cache
    positions: Tensor  # [capacity, dim] float32, the position embeddings

    @classmethod
    def empty(cls, lm: LM, clips: int, capacity: int, cross_capacity: int) -> "State":
        config, device = lm.config, lm.device

        def integers(*shape: int, value: int = 1) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        steps = NOISE_STEPS[device.type]
        return cls(
            sequence=integers(clips, config.n_q, capacity, value=config.special_token_id),
            column=integers(clips),
            last=integers(clips),
            prefix=integers(clips, value=0),
            noise=torch.ones(clips, steps, config.n_q, config.card, device=device),
            noise_step=integers(clips, value=0),
            sampling=SamplingRows.empty(clips, device),
            cache=Cache.empty(lm, 2 * clips, capacity, cross_capacity),
            positions=lm.positions(capacity),
        )

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
    """Decode one column of every clip of `state`, in place.

    A clip that is done steps on in its spare column, where there is nothing to decode.
    """
    batch = torch.arange(len(state.column), device=state.column.device)
    positions = state.prefix + state.column - 1
    x = lm.embed(state.sequence[batch, :, state.column - 1]) + state.positions[positions]
    logits = lm.step(
        x.repeat_interleave(2, dim=0), positions.repeat_interleave(2), state.cache, ops
    )
    guided = guide(logits, state.sampling.cfg_coef)
    codes = ops.sample(guided, state.noise[batch, state.noise_step], state.sampling)
    known = state.sequence[batch, :, state.column]
    state.sequence[batch, :, state.column] = torch.where(known == UNKNOWN, codes, known)
    state.column.copy_(torch.minimum(state.column + 1, state.last))
    state.noise_step.copy_((state.noise_step + 1) % state.noise.shape[1])


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
        self.ops = kernels.CPU if lm.device.type == "cpu" else kernels.TORCH

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
        """Make the first request as fast as the later ones."""

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
        state = self._state(tracks)
        for done in range(tracks[0].steps + 1):
            for slot, track in enumerate(tracks):
                if done in track.starts:
                    self._turn_window(track, track.starts.index(done), state.clips(slot, slot + 1))
            active = [track for track in tracks if track.steps > done]
            if not active:
                return
            if done % state.noise.shape[1] == 0:
                for slot, track in enumerate(active):
                    state.noise[slot].exponential_(generator=track.generator)
            decode_step(self.lm, self.ops, state.clips(0, len(active)))
            report()

    def _state(self, tracks: Sequence[Track]) -> State:
        """Room for these tracks."""
        all_conditions = [c for track in tracks for c in track.clip.conditions]
        prefix = max(0 if c.prefix is None else c.prefix.shape[1] for c in all_conditions)
        cross = max(0 if c.cross is None else c.cross.shape[1] for c in all_conditions)
        longest = max(w.stop - w.start for track in tracks for w in track.windows)
        columns = pattern.num_columns(longest, self.lm.config.delays) + 1
        return State.empty(self.lm, len(tracks), prefix + columns, cross)

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
        slot.column.fill_(prompt + 1)
        slot.last.fill_(columns)
        slot.sampling.set(0, track.clip.sampling, config.card)
        # Column `prompt` is the input of the first decode step, as every later one.
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
