"""Which device to serve on, and in what precision."""

import os

import torch

from musicgen.errors import MusicGenError


def resolve_device(device: str | None = None) -> torch.device:
    """The argument, MUSICGEN_DEVICE or, for `auto`, a GPU if there is one. Raises MusicGenError."""
    name = device or os.environ.get("MUSICGEN_DEVICE") or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as exc:
        raise MusicGenError(
            f"MUSICGEN_DEVICE={name!r} is not a valid device. Set auto, cpu or cuda."
        ) from exc
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MusicGenError(
            f"MUSICGEN_DEVICE={name!r}, but PyTorch finds no usable CUDA device. Set cpu, or check "
            "the driver."
        )
    return found


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp16 on a GPU, as audiocraft; fp32 arithmetic on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32
