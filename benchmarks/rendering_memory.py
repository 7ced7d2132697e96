"""Measures the memory of a rendering, in copies of its wav: the constants of rendering/demand.py.

    python -m benchmarks.rendering_memory --seconds 30 60 90

EnCodec has the size of the published ones and random weights, so it takes about as long as a
published one. The memory that does not depend on the length (activations of a window) is the
difference between two lengths' figures; the slope is what several open renderings add up to.
"""

import argparse
import gc
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_report.together import CODEC
from musicgen import MusicGen
from musicgen.rendering import pieces
from musicgen.rendering.encodec import Encodec

CHANNELS = 2


def main() -> None:
    """Print bytes at the peak for each length, and the slope in copies of the wav."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[30, 60, 90])
    parser.add_argument("--diffusion", type=Path, help="a checkpoint with Multi-Band Diffusion")
    options = parser.parse_args()
    render = diffusion(options.diffusion) if options.diffusion else encodec()
    peaks = [peak(render, seconds) for seconds in options.seconds]
    for (shorter, less), (longer, more) in pairwise(peaks):
        print(
            f"{shorter} to {longer} samples: {(more - less) / (4 * (longer - shorter)):.1f} copies"
        )


def encodec() -> Callable[[int], Tensor]:
    """Returns a function (seconds) -> stereo wav of a random EnCodec."""
    codec = Encodec(CODEC).eval().requires_grad_(False)

    @torch.inference_mode()
    def render(seconds: int) -> Tensor:
        frames = seconds * CODEC.sample_rate // CODEC.hop
        codes = torch.randint(CODEC.bins, (CHANNELS, CODEC.n_q, frames))
        return pieces.render(codec, codec.embed(codes))[:, 0]

    return render


def diffusion(folder: Path) -> Callable[[int], Tensor]:
    """Returns a function (seconds) -> wav of a checkpoint's Multi-Band Diffusion."""
    model = MusicGen.load(folder, "cpu")
    config = model.engine.lm.config

    def render(seconds: int) -> Tensor:
        frames = round(seconds * model.codec.frame_rate)
        return model.renderers.diffusion.decode(
            torch.randint(config.card, (1, config.n_q, frames)), [0]
        )

    render(1)
    return render


def peak(render: Callable[[int], Tensor], seconds: int) -> tuple[int, int]:
    """Returns samples of the wav, and bytes that rendering it needs at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    idle, start = memory("VmRSS"), time.perf_counter()
    samples = render(seconds).numel()
    needed = memory("VmHWM") - idle
    print(f"{seconds} s: {needed / 1e6:.0f} MB in {time.perf_counter() - start:.0f} s", flush=True)
    return samples, needed


def memory(name: str) -> int:
    """Returns a memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
