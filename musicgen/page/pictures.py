"""Plots as HTML: a bitmap that stretches with the page, lines over it, labels of a fixed size.

Unlike an image of a plot, they follow the page's colours and width.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from musicgen.page.analysis import NOTES, RANGE, Floats

# From dark to light, in even steps of lightness.
PALETTE = np.array([(12, 8, 38), (84, 20, 125), (185, 52, 118), (250, 138, 92), (252, 246, 186)])
MAX_WIDTH = 1200  # pixels
POINTS = 400  # of a waveform


def mel(levels: Floats, beats: Floats, seconds: float, rate: int) -> str:
    """A mel spectrogram [bands, T] in dB from -RANGE to 0, with beats, of audio at `rate` Hz."""
    alt = f"Mel spectrogram over {seconds:.1f} s, with {len(beats)} beats marked"
    lines = _lines(beats / seconds)
    labels = (f"{rate / 2000:g} kHz", "mel", "0 Hz")
    return _plot(alt, levels / RANGE + 1, labels, seconds, lines)


def chromagram(chroma: Floats, seconds: float, title: str = "Chromagram") -> str:
    """A chromagram [12, T], values from 0 to 1, C at the bottom."""
    strongest = ", ".join(NOTES[i] for i in np.argsort(-chroma.mean(1))[:4])
    alt = f"{title} over {seconds:.1f} s; strongest: {strongest}"
    return _plot(alt, chroma, NOTES[::-1], seconds, "")


def waveform(mono: Floats, seconds: float, start: float, end: float) -> str:
    """The waveform of mono [N], with the slice from start to end in seconds marked."""
    parts = np.array_split(np.abs(mono), min(POINTS, len(mono)))
    peaks = np.array([part.max() for part in parts])
    heights = peaks / max(peaks.max(), 1e-9) * 46
    up = " ".join(f"{x},{50 - y:.1f}" for x, y in enumerate(heights))
    down = " ".join(f"{x},{50 + y:.1f}" for x, y in reversed(list(enumerate(heights))))
    left, width = (round(t / seconds * len(peaks), 1) for t in (start, end - start))
    return (
        f'<div class="plot wave"><div class="canvas" role="img" aria-label="Waveform of '
        f'{seconds:.1f} s; used: {start:g} to {end:.1f} s">'
        f'<svg viewBox="0 0 {len(peaks)} 100" preserveAspectRatio="none">'
        f'<rect class="slice" x="{left}" y="0" width="{width}" height="100"/>'
        f'<polygon points="{up} {down}"/></svg></div>{_times(seconds)}</div>'
    )


def _plot(alt: str, values: Floats, labels: Sequence[str], seconds: float, lines: str) -> str:
    names = "".join(f"<span>{escape(label)}</span>" for label in labels)
    return (
        f'<div class="plot"><div class="scale" aria-hidden="true">{names}</div>'
        f'<div class="canvas"><img src="{_bitmap(values)}" alt="{escape(alt)}">{lines}</div>'
        f"{_times(seconds)}</div>"
    )


def _times(seconds: float) -> str:
    marks = "".join(f"<span>{seconds * part / 4:.1f} s</span>" for part in range(5))
    return f'<div class="times" aria-hidden="true">{marks}</div>'


def _lines(places: Floats) -> str:
    """Vertical lines at positions from 0 to 1."""
    drawn = "".join(f'<line x1="{x:.4f}" x2="{x:.4f}" y1="0" y2="1"/>' for x in places)
    return f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def _bitmap(values: Floats) -> str:
    """values [rows, T] from 0 to 1, with the first row at the bottom, as a data URI of a PNG."""
    values = values[::-1, :: max(1, values.shape[1] // MAX_WIDTH)]
    indices = np.round(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(indices, "L")
    steps = np.linspace(0, 1, len(PALETTE))
    colours = [np.interp(np.linspace(0, 1, 256), steps, channel) for channel in PALETTE.T]
    image.putpalette(np.round(np.stack(colours, 1)).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
