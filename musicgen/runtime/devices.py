"""The device to serve on, and the precision of its decoder."""

import os
import re
from pathlib import Path

import torch

from musicgen.errors import MusicGenError

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
# Present where an NVIDIA driver is installed: Linux; Windows with WSL.
DRIVER_FILES = (DRIVER_VERSION, Path("/dev/nvidia0"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
DEVICES = ("cpu", "cuda")
# fast: weights in int8, keys and values in float16, on the CPU only.
EXACT, FAST = PRECISIONS = ("exact", "fast")


def resolve_device(device: str | None = None) -> torch.device:
    """The argument, MUSICGEN_DEVICE or, for `auto`, a GPU if there is one.

    Raises MusicGenError for a device that cannot be used, and for `auto` if there is an NVIDIA GPU
    that PyTorch cannot use: a CPU would be many times slower, and nobody would notice why.
    """
    name = device or os.environ.get("MUSICGEN_DEVICE") or "auto"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if _gpu_is_unusable():
            raise MusicGenError(f"There is an NVIDIA driver, but {_no_cuda()}")
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind == "cuda" and index:
        raise MusicGenError(
            f"MUSICGEN_DEVICE={name!r}: a GPU cannot be chosen by an index here. Set "
            f"MUSICGEN_DEVICE=cuda and CUDA_VISIBLE_DEVICES={index}."
        )
    if name not in DEVICES:
        raise MusicGenError(
            f"MUSICGEN_DEVICE={name!r} is not a valid device. Set auto, cpu or cuda."
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise MusicGenError(f"MUSICGEN_DEVICE={name!r}, but {_no_cuda()}")
    return torch.device(name)


def resolve_precision(precision: str | None, device: torch.device) -> str:
    """The argument, MUSICGEN_PRECISION or `exact`.

    Raises MusicGenError for an unknown precision, and for `fast` on a GPU.
    """
    name = precision or os.environ.get("MUSICGEN_PRECISION") or EXACT
    if name not in PRECISIONS:
        raise MusicGenError(f"MUSICGEN_PRECISION={name!r} is not a precision. Set exact or fast.")
    if name == FAST and device.type != "cpu":
        raise MusicGenError(
            f"MUSICGEN_PRECISION={name!r} is for the CPU only, and this server uses a GPU. Set "
            "MUSICGEN_PRECISION=exact or MUSICGEN_DEVICE=cpu."
        )
    return name


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp16 on a GPU, as audiocraft; fp32 arithmetic on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


def describe_device(device: torch.device) -> str:
    """The device's name and, of a GPU, the versions that decide what runs on it."""
    if device.type != "cuda":
        return f"CPU ({torch.get_num_threads()} threads), torch {torch.__version__}"
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}), driver "
        f"{driver_version() or 'unknown'}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


def driver_version() -> str | None:
    """The version of the NVIDIA driver, such as "570.86.15"; None if it is not known."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER_VERSION.read_text())
    except OSError:
        return None
    return found[0] if found else None


def _gpu_is_unusable() -> bool:
    """Whether this machine has an NVIDIA driver that PyTorch, built for CUDA, cannot use."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    built_for_cuda = torch.version.cuda is not None
    return built_for_cuda and not hidden and any(path.exists() for path in DRIVER_FILES)


def _no_cuda() -> str:
    """What a message says where PyTorch finds no usable GPU, and how to change it."""
    return (
        f"PyTorch finds no usable CUDA device (driver {driver_version() or 'unknown'}, PyTorch "
        f"built for CUDA {torch.version.cuda or 'none'}). CUDA 13 needs driver 580, CUDA 12 driver "
        "525. Update the driver, start the container with --gpus all, or set MUSICGEN_DEVICE=cpu."
    )
