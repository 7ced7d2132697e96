"""Codes -> wav for all requests: in the device thread, within a budget of memory."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from torch import Tensor

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.rendering.codec import Codec
from musicgen.rendering.demand import DIFFUSION, ENCODEC, Demand
from musicgen.rendering.pieces import Rendering, Span
from musicgen.runtime.budget import Budget
from musicgen.runtime.device_thread import DeviceThread


class Renderer(Protocol):
    """Codes -> wav, implemented by EnCodec and by Multi-Band Diffusion."""

    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone."""
        ...


class Renderers:
    """EnCodec and Multi-Band Diffusion of a checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, codec: Codec, device_thread: DeviceThread, budget: Budget
    ) -> None:
        """`budget` bounds the memory of all renderings together, without their results."""
        self.checkpoint = checkpoint
        self.codec = codec
        self.device_thread = device_thread
        self.budget = budget

    @cached_property
    def diffusion(self) -> Renderer:
        """Multi-Band Diffusion, loaded for the first request that asks: it is as large as an LM."""
        # It imports audiocraft, which takes seconds.
        from musicgen.rendering.diffusion import MultiBandDiffusion

        diffusion = MultiBandDiffusion(self.checkpoint, self.codec, self.codec.device)
        for band in diffusion.bands:
            self.device_thread.yield_before(band.model)
        return diffusion

    def render(self, codes: Tensor, seeds: Sequence[int], by_diffusion: bool) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N], after waiting for memory and for the device."""
        demand = DIFFUSION if by_diffusion else ENCODEC
        frames = codes.shape[0] * codes.shape[-1]
        with self.budget.take(self.memory(frames, demand)):
            return self.device_thread.run(
                lambda: (self.diffusion if by_diffusion else self.codec).decode(codes, seeds),
                demand.cost * frames / self.codec.frame_rate,
            )

    def render_piece(self, rendering: Rendering, span: Span, codes: Tensor) -> Tensor:
        """The next piece of a clip by EnCodec: codes [K, high - low] -> wav [C, N]."""
        frames = span.stop - span.start
        with self.budget.take(self.memory(frames, ENCODEC)):
            return self.device_thread.run(
                lambda: self.codec.render_piece(rendering, span, codes),
                ENCODEC.cost * frames / self.codec.frame_rate,
            )

    def memory(self, frames: int, demand: Demand) -> int:
        """Bytes that rendering so many frames takes at its peak, on the device or beside it."""
        samples = frames * self.codec.model.config.hop * self.codec.channels
        return 4 * samples * demand.copies
