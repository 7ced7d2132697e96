"""Files of a checkpoint folder: found by name, read without executing what they hold."""

import pickle
from pathlib import Path
from typing import Any

import torch

from musicgen.errors import WeightsError


def find(folder: Path, name: str) -> Path:
    """A file of `folder`; raises WeightsError, with what to do, if it is not there."""
    path = folder / name
    if not path.exists():
        raise WeightsError(
            f"{path} is missing. Fetch a whole checkpoint, or point MUSICGEN_WEIGHTS at one "
            "that has this file (weights/README.md lists what a folder holds)."
        )
    return path


def local_name(name: str) -> str:
    """Folder of a model that a configuration names: `facebook/encodec_32khz` -> its last part.

    Only that last part is used, so a configuration cannot point outside of the checkpoint.
    """
    return Path(name).name


def read_package(path: Path, allowed: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """A dictionary saved by torch.save, memory-mapped, without executing pickled code.

    `allowed` are the classes and functions that may stand in it besides tensors and plain data.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise WeightsError(
            f"{path} cannot be loaded as tensors and plain data ({reason}). It is damaged, or it "
            "holds code, which is never executed; fetch it again."
        ) from exc
    if not isinstance(package, dict):
        raise WeightsError(f"{path} holds a {type(package).__name__}, not a checkpoint.")
    return package
