"""Finding and reading the files of a checkpoint folder; every failure names the file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from musicgen.errors import MusicGenError, WeightsError

MAX_JSON = 2**24  # bytes; the largest one of a MusicGen is T5's tokenizer with 2.4 million
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal


def find(folder: Path, name: str) -> Path:
    """The path of file `name` in `folder`; raises WeightsError if it does not exist."""
    path = folder / name
    _check_exists(path)
    return path


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise WeightsError(
            f"{path} is missing. Complete a folder of downloaded or fine-tuned weights with "
            "`scripts/weights pull FOLDER DIR`, or point MUSICGEN_WEIGHTS at a whole checkpoint "
            "(weights/README.md lists its files)."
        )


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
    _check_exists(path)
    if path.is_fifo():  # opening a pipe would block for ever
        raise WeightsError(f"{path} is not a regular file; fetch it again.")
    try:
        yield
    except (MusicGenError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        reason = ESCAPES.sub("", str(exc)).partition("\n")[0] or type(exc).__name__
        raise WeightsError(
            f"{path} cannot be read ({reason}): it is damaged or has another format. Fetch or "
            "convert it again."
        ) from exc


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises WeightsError if the file holds anything else."""
    with damage_reported(path):
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON} bytes")
        document = json.loads(path.read_text())
    if not isinstance(document, dict):
        raise WeightsError(f"{path} does not hold a JSON object; fetch or convert it again.")
    return document
