"""The result of a request, before it is normalized and encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from musicgen.request import Request


@dataclass(frozen=True)
class Generation:
    """The clips of one request as decoded: wav [C, N] float32 on the CPU, one per clip.

    `model` is the name of the checkpoint. `precision` is exact (the reference implementation's
    codes) or fast.
    """

    request: Request
    wavs: Sequence[Tensor]
    sample_rate: int
    model: str
    precision: str = "exact"

    @property
    def seed(self) -> int:
        """Seed of the first clip; clip i has `request.clip_seed(i)`."""
        return self.request.clip_seed(0)

    @property
    def duration(self) -> float:
        """Seconds of audio in one clip."""
        return self.wavs[0].shape[-1] / self.sample_rate

    @property
    def total_duration(self) -> float:
        """Seconds of audio in all clips."""
        return self.duration * len(self.wavs)
