"""Samples of EnCodec's decoder, one piece of a clip after another.

Pieces bound the memory of long clips (five minutes of stereo would take 5 GB a layer), they are
faster on a CPU, whose caches they fit, and they can be made while later frames are still unknown.
The shape of every product depends on the piece's place in the clip and on the clip's length alone,
so a clip's samples have the same bits however it is rendered.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from musicgen.rendering.encodec import Encodec, LSTMState

# Frames of the first pieces; all others have as many as the last of these. The first is short, so
# that it is ready early. Shorter pieces repeat more work at their borders, longer ones leave the
# cache of a CPU.
SIZES = (25, 25, 50, 100)


class Piece(NamedTuple):
    """Frames [start, stop) of a clip, and the frames [low, high) of embeddings that it reads."""

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
        self.pieces = self._pieces()
        self._known = 0  # frames that have passed the LSTM
        self._state: LSTMState | None = None
        self._features: Tensor | None = None  # [B, width, T], the last frames before `_known`

    def render(self, piece: Piece, embeddings: Tensor) -> Tensor:
        """embeddings [B, D, high - low] of the next piece -> wav [B, 1, hop * (stop - start)]."""
        hop, (before, after) = self.model.config.hop, self.model.upsampling_reach
        stop = min(piece.stop + after, self.frames)
        new = self.model.decoder[0](embeddings)[..., self._known - piece.low : stop - piece.low]
        for lstm in self.model.decoder_lstms:
            new, self._state = lstm.advance(new, self._state)
        features = new if self._features is None else torch.cat([self._features, new], dim=-1)
        first = stop - features.shape[-1]
        wav: Tensor = self.model.upsampling(features)[..., (piece.start - first) * hop :]
        self._known = stop
        self._features = features[..., max(0, piece.stop - before) - first :]
        return wav[..., : (piece.stop - piece.start) * hop]

    def _pieces(self) -> list[Piece]:
        """The clip's pieces: `SIZES`, and at the end what is at least half of a piece.

        No piece is shorter than what its borders reach, so that padding sees the frames that it
        sees in the whole clip.
        """
        first, after = self.model.first_reach, self.model.upsampling_reach
        least = 1 + max(first.before + after.before, first.after + after.after)
        found: list[Piece] = []
        start = known = 0
        while start < self.frames:
            size = max(SIZES[min(len(found), len(SIZES) - 1)], least)
            stop = min(start + size, self.frames)
            if self.frames - stop < max(size // 2, least):
                stop = self.frames
            low = max(0, known - first.before)
            known = min(stop + after.after, self.frames)
            found.append(Piece(start, stop, low, min(known + first.after, self.frames)))
            start = stop
        return found


def rendered(
    model: Encodec, frames: int, embeddings: Callable[[slice], Tensor]
) -> Iterator[Tensor]:
    """The pieces of a clip in order, wav [B, 1, N]; `embeddings` returns [B, D, T] of frames."""
    rendering = Rendering(model, frames)
    for piece in rendering.pieces:
        yield rendering.render(piece, embeddings(slice(piece.low, piece.high)))


@torch.inference_mode()
def render(model: Encodec, embeddings: Tensor) -> Tensor:
    """embeddings [B, D, T] -> wav [B, 1, hop * T]."""
    frames = embeddings.shape[-1]
    return torch.cat(list(rendered(model, frames, lambda part: embeddings[..., part])), dim=-1)
