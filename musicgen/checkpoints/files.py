"""Files of a checkpoint folder: found by name, read without executing what they hold."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen.errors import MusicGenError, WeightsError


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
    last = Path(name).name
    if last in ("", ".."):
        raise WeightsError(f"{name!r} is not the name of a model.")
    return last


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """DeviceLock whatever reading `path` raises into a WeightsError that names it.

    There is no exception that damage does not cause somewhere in a library. What is raised here on
    purpose says more already, and a device without memory is not the file's fault.
    """
    if not path.exists() or path.is_fifo():  # to open a pipe would be to wait for ever
        raise WeightsError(f"{path} is no file; fetch it again.")
    try:
        yield
    except (MusicGenError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise WeightsError(
            f"{path} cannot be read ({reason}): it is damaged, or not what it should be. Fetch or "
            "convert it again."
        ) from exc


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises WeightsError for what is none."""
    with damage_reported(path):
        document = json.loads(path.read_text())
    if not isinstance(document, dict):
        raise WeightsError(f"{path} holds no JSON object; fetch or convert it again.")
    return document


def read_package(path: Path, allowed: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """A dictionary saved by torch.save, memory-mapped, without executing pickled code.

    `allowed` are the classes and functions that may stand in it besides tensors and plain data.
    What would become larger in memory than the file is refused.
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
    with damage_reported(path):  # a configuration in it may be too damaged to be looked at
        _check_tensors(path, package, path.stat().st_size)
    return package


def _check_stored(path: Path) -> None:
    """torch compresses nothing, so that a compressed part is a bomb or somebody else's zip."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def _check_tensors(path: Path, found: Any, size: int) -> None:
    """A tensor of stride 0 can claim any size; one that is not strided could be anything."""
    if isinstance(found, Mapping):
        for value in found.values():
            _check_tensors(path, value, size)
    elif isinstance(found, Tensor) and (
        found.layout != torch.strided or found.is_quantized or found.is_meta or found.nbytes > size
    ):
        raise WeightsError(f"{path} holds a tensor that is larger than the file, or no plain one.")
