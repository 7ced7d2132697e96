"""Files written by torch.save, read without executing the code that a pickle can hold."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen.checkpoints.reading import damage_reported
from musicgen.errors import WeightsError


def read_package(path: Path, allowed: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """The dictionary that torch.save wrote to `path`, memory-mapped.

    `allowed` lists the classes and functions that it may name besides tensors and plain data. A
    file that would become larger in memory than it is on the disk is refused.
    """
    try:
        with damage_reported(path), torch.serialization.safe_globals(list(allowed)):
            _check_stored(path)
            package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except WeightsError as exc:
        raise WeightsError(
            f"{exc} Only tensors and plain data are loaded: code in it is never executed."
        ) from exc.__cause__
    if not isinstance(package, dict):
        raise WeightsError(f"{path} holds a {type(package).__name__}, not a checkpoint.")
    with damage_reported(path):  # looking at a damaged configuration may raise
        _check_tensors(path, package, path.stat().st_size)
    return package


def _check_stored(path: Path) -> None:
    """torch does not compress, so a compressed part means a zip bomb or another program's zip."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def _check_tensors(path: Path, found: Any, size: int) -> None:
    """Refuse tensors that claim more bytes than the file has (by stride 0), or are not strided."""
    if isinstance(found, dict):  # not OmegaConf's mappings: reading those would resolve them
        for value in found.values():
            _check_tensors(path, value, size)
    elif isinstance(found, Tensor) and (
        found.layout != torch.strided or found.is_quantized or found.is_meta or found.nbytes > size
    ):
        raise WeightsError(
            f"{path} holds a tensor that is larger than the file, or not a plain one."
        )
