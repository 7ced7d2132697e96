"""Finding and reading the files of a checkpoint folder; every failure names the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from musicgen.errors import MusicGenError, WeightsError


def find(folder: Path, name: str) -> Path:
    """The path of file `name` in `folder`; raises WeightsError if it does not exist."""
    path = folder / name
    if not path.exists():
        raise WeightsError(
            f"{path} is missing. Fetch a whole checkpoint, or point MUSICGEN_WEIGHTS at one "
            "that has this file (weights/README.md lists the files of a checkpoint)."
        )
    return path


def local_name(name: str) -> str:
    """Folder name of a model that a configuration names: `facebook/encodec_32khz` -> its last part.

    Only the last part is used, so a configuration cannot point outside of the checkpoint.
    """
    last = Path(name).name
    if last in ("", ".."):
        raise WeightsError(f"{name!r} is not the name of a model.")
    return last


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Raise any exception of the block as a WeightsError that names `path`.

    A damaged file can make the libraries raise any exception. The project's own exceptions pass
    unchanged because they say more; so does a device without memory, which the file did not cause.
    """
    if not path.exists() or path.is_fifo():  # opening a pipe would block for ever
        raise WeightsError(f"{path} is not a regular file; fetch it again.")
    try:
        yield
    except (MusicGenError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise WeightsError(
            f"{path} cannot be read ({reason}): it is damaged or has another format. Fetch or "
            "convert it again."
        ) from exc


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises WeightsError if the file holds anything else."""
    with damage_reported(path):
        document = json.loads(path.read_text())
    if not isinstance(document, dict):
        raise WeightsError(f"{path} does not hold a JSON object; fetch or convert it again.")
    return document
