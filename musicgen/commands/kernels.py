"""Compiles the GPU kernels of a checkpoint's server in advance, for `scripts/weights kernels`."""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.conditioning.conditioner import MAX_TOKENS, Conditioner
from musicgen.decoder.kernels import compiler
from musicgen.decoder.prebuild import Shapes, prebuild
from musicgen.errors import MusicGenError
from musicgen.pipeline import window_frames
from musicgen.rendering.codec import Codec


def compile_kernels(checkpoint: Path, capabilities: list[int], into: Path) -> Iterator[str]:
    """Yield a line for each compute capability (90: sm_90) whose kernels are in the folder `into`.

    Raises MusicGenError without Triton, and WeightsError for a checkpoint that cannot be used.
    """
    if compiler.triton is None:
        raise MusicGenError("Triton is not installed; it exists for Linux only.")
    found = shapes(checkpoint)
    for capability in capabilities:
        start = perf_counter()
        count = prebuild(found, capability, into)
        yield f"sm_{capability}: {count} kernels in {perf_counter() - start:.0f} s"
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    yield f"{into}: {size / 1e6:.1f} MB"


def shapes(folder: Path) -> Shapes:
    """The shapes that kernels depend on, for a server of the checkpoint in `folder`."""
    checkpoint, cpu = open_checkpoint(folder), torch.device("cpu")
    conditioner, prefixes = Conditioner(checkpoint, cpu), []
    for conditioner.text.max_tokens in MAX_TOKENS:
        prefixes.append(conditioner.longest)
    return Shapes(
        checkpoint.lm,
        window_frames(checkpoint, Codec(checkpoint, cpu)),
        tuple(prefixes),
        conditioner.shared is not None,
    )
