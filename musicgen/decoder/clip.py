"""What the engine is asked to decode: a clip, its windows, and what each is conditioned on."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from musicgen.decoder.sampling import Sampling


@dataclass(frozen=True)
class Conditions:
    """What one window of one clip is conditioned on; row 0 the condition, row 1 its null."""

    prefix: Tensor | None = None  # [2, P, dim], prepended to the codes
    cross: Tensor | None = None  # [2, L, dim], attended to by cross-attention
    # How many positions of each row of `prefix` are the engine's shared prefix; the null's as many
    # as the condition's or more.
    shared: tuple[int, int] = (0, 0)

    @property
    def given(self) -> Tensor | None:
        """Whichever of the two it is."""
        return self.cross if self.prefix is None else self.prefix


@dataclass(frozen=True)
class Clip:
    """One clip to decode."""

    length: int  # frames, the prompt included
    seed: int  # 0 .. SEED_RANGE - 1
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
    start = 0
    while prompt < length:
        stop = min(start + max_length, length)
        if stop > prompt:
            found.append(Window(start, stop))
            prompt = stop
        start += stride
    return found
