"""Samples of EnCodec's decoder, one piece of a clip after another.

Pieces bound the memory of long clips (five minutes of stereo would take 5 GB a layer), they are
faster on a CPU, whose caches they fit, and they can be made while later frames are still unknown.
The shape of every product depends on the piece's place in the clip and on the clip's length alone,
so a clip's samples have the same bits however it is rendered.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from musicgen.rendering.encodec import Encodec, LSTMState

# Frames of the first pieces; all others have as many as the last of these. The first is short, so
# that it is ready early. Shorter pieces repeat more work at their borders, longer ones leave the
# cache of a CPU.
SIZES = (25, 25, 50, 100)


class Span(NamedTuple):
    """The frames [start, stop) of a piece, and the frames [low, high) of codes that it reads."""

    start: int
    stop: int
    low: int
    high: int


class Rendering:
    """One clip's way through EnCodec's decoder. Keeps what the next piece shares with this one."""

    def __init__(self, model: Encodec, frames: int) -> None:
        """`frames` is the clip's length."""
        self.model = model
        self.frames = frames
        self.spans = self._spans()
        self._known = 0  # frames that have passed the LSTM
        self._state: LSTMState | None = None
        self._features: Tensor | None = None  # [B, width, T], the last frames before `_known`

    def render(self, span: Span, embeddings: Tensor) -> Tensor:
        """embeddings [B, D, high - low] of the next piece -> wav [B, 1, hop * (stop - start)].

        If it raises, it can be called again with the same piece.
        """
        hop, (before, after) = self.model.config.hop, self.model.upsampling_reach
        stop, state = min(span.stop + after, self.frames), self._state
        new = self.model.decoder[0](embeddings)[..., self._known - span.low : stop - span.low]
        for lstm in self.model.decoder_lstms:
            new, state = lstm.advance(new, state)
        features = new if self._features is None else torch.cat([self._features, new], dim=-1)
        first = stop - features.shape[-1]
        wav: Tensor = self.model.upsampling(features)[..., (span.start - first) * hop :]
        self._known, self._state = stop, state
        self._features = features[..., max(0, span.stop - before) - first :]
        return wav[..., : (span.stop - span.start) * hop]

    def _spans(self) -> list[Span]:
        """The clip's pieces: `SIZES`, and at the end what is at least half of a piece.

        No piece is shorter than what its borders reach, so that padding sees the frames that it
        sees in the whole clip.
        """
        first, after = self.model.first_reach, self.model.upsampling_reach
        least = 1 + max(first.before + after.before, first.after + after.after)
        found: list[Span] = []
        start = known = 0
        while start < self.frames:
            size = max(SIZES[min(len(found), len(SIZES) - 1)], least)
            stop = min(start + size, self.frames)
            if self.frames - stop < max(size // 2, least):
                stop = self.frames
            low = max(0, known - first.before)
            known = min(stop + after.after, self.frames)
            found.append(Span(start, stop, low, min(known + first.after, self.frames)))
            start = stop
        return found


@torch.inference_mode()
def render(model: Encodec, embeddings: Tensor) -> Tensor:
    """embeddings [B, D, T] -> wav [B, 1, hop * T]."""
    rendering = Rendering(model, embeddings.shape[-1])
    wavs = [rendering.render(s, embeddings[..., s.low : s.high]) for s in rendering.spans]
    return torch.cat(wavs, dim=-1)
