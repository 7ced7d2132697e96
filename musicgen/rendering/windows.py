"""Processes long signals in overlapping windows, so that memory does not grow with the length."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def spans(total: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """The fewest windows [start, stop) of equal length, at most `size`, that cover `total`.

    Neighbours overlap by `overlap`, up to rounding.
    """
    if total <= size:
        return [(0, total)]
    count = -(-(total - overlap) // (size - overlap))
    length = -(-(total + (count - 1) * overlap) // count)
    starts = (index * (total - length) // (count - 1) for index in range(count))
    return [(start, start + length) for start in starts]


def crossfaded(
    function: Callable[[int, int], Tensor], like: Tensor, hop: int, size: int, overlap: int
) -> Tensor:
    """One signal [..., N] of the shape of `like`, crossfaded from `function(start, stop)`.

    `function` returns the samples of frames [start, stop), `hop` samples each. Where two windows
    overlap, one fades out while the other fades in.
    """
    windows = spans(like.shape[-1] // hop, size, overlap)
    if len(windows) == 1:
        return function(*windows[0])
    result, weights = torch.zeros_like(like), like.new_zeros(like.shape[-1])
    for (start, stop), fade in zip(windows, _fades(windows, hop), strict=True):
        place = slice(start * hop, stop * hop)
        fade = fade.to(like)
        result[..., place] += function(start, stop) * fade
        weights[place] += fade
    return result / weights


def padded(total: int, size: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of `size` out of `total` samples, each read with a `margin` on both sides.

    Yields the slice to read, [start - margin, stop + margin), and the slice of it to keep.
    """
    for start in range(0, total, size):
        stop = min(start + size, total)
        first = max(0, start - margin)
        yield slice(first, min(stop + margin, total)), slice(start - first, stop - first)


def _fades(windows: list[tuple[int, int]], hop: int) -> Iterator[Tensor]:
    """The weight of every sample of each window; it ramps where a neighbour overlaps."""
    for index, (start, stop) in enumerate(windows):
        fade = torch.ones((stop - start) * hop)
        if index > 0:
            shared = (windows[index - 1][1] - start) * hop
            fade[:shared] = (torch.arange(shared) + 0.5) / shared
        if index + 1 < len(windows):
            shared = (stop - windows[index + 1][0]) * hop
            fade[-shared:] = (torch.arange(shared) + 0.5).flip(0) / shared
        yield fade
