"""Windows that cover a signal, and the signal that is reassembled from them."""

from itertools import pairwise

import pytest
import torch

from musicgen.rendering.windows import crossfaded, padded, spans


@pytest.mark.parametrize("total", [1, 99, 100, 101, 150, 180, 181, 999, 15000])
def test_windows_cover_everything_and_overlap(total):
    windows = spans(total, 100, 20)
    assert windows[0][0] == 0
    assert windows[-1][1] == total
    assert len({stop - start for start, stop in windows}) == 1
    assert windows[0][1] <= 100
    for (_, stop), (start, _) in pairwise(windows):
        assert 19 <= stop - start <= 22
    assert len(windows) == max(1, -(-(total - 20) // 80))


@pytest.mark.parametrize("frames", [10, 57, 300])
def test_a_signal_that_does_not_depend_on_the_window_is_unchanged(frames):
    signal = torch.randn(2, 1, frames * 4)

    def part(start, stop):
        return signal[..., start * 4 : stop * 4]

    torch.testing.assert_close(crossfaded(part, signal, 4, 50, 12), signal)


def test_windows_fade_into_each_other():
    """Two constants are joined without a step, and are unchanged outside of the overlap."""
    levels = iter([0.0, 1.0])

    def part(start, stop):
        return torch.full((stop - start,), next(levels))

    faded = crossfaded(part, torch.zeros(160), 1, 100, 40)
    assert (faded[:60] == 0).all()
    assert (faded[100:] == 1).all()
    assert float(faded.diff().min()) >= 0
    assert float(faded.diff().max()) < 1.5 / 40


@pytest.mark.parametrize("total", [1, 64, 65, 200])
def test_pieces_are_read_with_a_margin_and_cover_the_signal(total):
    numbers = torch.arange(total)
    pieces = [(numbers[read], keep) for read, keep in padded(total, 64, 10)]
    assert torch.equal(torch.cat([part[keep] for part, keep in pieces]), numbers)
    for part, keep in pieces:
        assert keep.start == min(10, int(part[keep][0]))
        assert len(part) - keep.stop == min(10, total - 1 - int(part[keep][-1]))
