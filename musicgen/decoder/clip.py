"""The input of the engine: a clip, its windows, and the conditions of each window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from musicgen.decoder.sampling import SEED_RANGE, Sampling
from musicgen.decoder.weights import LMConfig


@dataclass(frozen=True)
class Conditions:
    """The conditions of one window of one clip: row 0 conditional, row 1 unconditional."""

    prefix: Tensor | None = None  # [2, P, dim], prepended to the codes
    cross: Tensor | None = None  # [2, L, dim], attended to by cross-attention
    # How many leading positions of each row of `prefix` equal the engine's shared prefix. The
    # unconditional row has at least as many as the conditional row.
    shared: tuple[int, int] = (0, 0)

    @property
    def given(self) -> Tensor | None:
        """The one of `prefix` and `cross` that is set; None if neither is."""
        return self.cross if self.prefix is None else self.prefix


@dataclass(frozen=True)
class Clip:
    """One clip to decode."""

    length: int  # frames, the audio prompt included
    seed: int  # 0 .. SEED_RANGE - 1
    sampling: Sampling
    conditions: Sequence[Conditions]  # one per window, in order
    prompt_codes: Tensor | None = None  # [K, T0], T0 < length

    @property
    def prompt_length(self) -> int:
        """Frames of the audio prompt."""
        return 0 if self.prompt_codes is None else self.prompt_codes.shape[-1]


@dataclass(frozen=True)
class Window:
    """The frames [start, stop) of a clip, which the decoder attends to together."""

    start: int
    stop: int


def windows(prompt: int, length: int, max_length: int, stride: int) -> list[Window]:
    """The windows in which a clip of `length` frames is decoded after `prompt` known frames.

    They are audiocraft's (models/musicgen.py `_generate_tokens`): they start at 0, stride,
    2 stride, ..., hold at most max_length frames, and each is prompted by the frames that are
    already decoded. A window without frames to decode, on which audiocraft fails, is left out.
    """
    found: list[Window] = []
    start = 0
    while prompt < length:
        stop = min(start + max_length, length)
        if stop > prompt:
            found.append(Window(start, stop))
            prompt = stop
        start += stride
    return found


def problems(
    clip: Clip, windows: Sequence[Window], config: LMConfig, max_prefix: int, shared_length: int
) -> Iterator[str]:
    """Why an engine with these limits cannot decode a clip in these windows; nothing if it can."""
    conditions, cross = clip.conditions, config.cross_attention
    longest = max((0 if c.given is None else c.given.shape[1] for c in conditions), default=0)
    codebooks = config.n_q if clip.prompt_codes is None else len(clip.prompt_codes)
    found = {
        f"an audio prompt of {clip.prompt_length} frames leaves nothing to decode of "
        f"{clip.length}": not windows,
        f"{len(conditions)} conditions for {len(windows)} windows": len(conditions) != len(windows),
        f"seed {clip.seed} is not in 0 .. {SEED_RANGE - 1}": not 0 <= clip.seed < SEED_RANGE,
        f"prompt of {codebooks} codebooks, not {config.n_q}": codebooks != config.n_q,
        f"the model {'needs' if cross else 'has no'} cross-attention conditions": any(
            (c.cross is not None) != cross for c in conditions
        ),
        f"a condition of {longest} positions, at most {max_prefix}": longest > max_prefix,
        f"conditions share more than the {shared_length} positions of the engine's shared "
        "prefix": any(
            not 0 <= cond <= uncond <= shared_length
            for cond, uncond in (c.shared for c in conditions)
        ),
    }
    return (problem for problem, is_found in found.items() if is_found)
