"""Saves predictions as files. Never replaces a file, and does not lose audio to a full disk."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from musicgen.commands import client
from musicgen.commands.client import Prediction
from musicgen.errors import MusicGenError


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Make a folder for results, or check it; a new folder is removed again after an error.

    Raises MusicGenError if files cannot be written there.
    """
    is_new = not folder.exists()
    _prepare(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise MusicGenError(f"-o {folder}: this is a file. Name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise MusicGenError(f"-o {folder}: cannot write there: {_reason(exc).lower()}.") from exc


def save(prediction: Prediction, folder: Path) -> Any:
    """The prediction's output, its audio written into `folder` and replaced by file names.

    If the folder is full, the audio is saved to a temporary folder and MusicGenError is raised.
    """
    output = prediction.output
    if isinstance(output, list):
        return _save_audio(output, [f"clip-{index}" for index in range(len(output))], folder)
    [audio] = _save_audio([output["audio"]], ["audio"], folder)
    return output | {"audio": audio}


def _save_audio(uris: Sequence[str], names: Sequence[str], folder: Path) -> list[str]:
    if not all(uri.startswith("data:") for uri in uris):
        return list(uris)  # addresses in the bucket
    clips = [client.fetch(uri) for uri in uris]
    files = [name + suffix for name, (_, suffix) in zip(names, clips, strict=True)]
    contents = [content for content, _ in clips]
    try:
        return _write(files, contents, folder)
    except OSError as exc:
        rescued = Path(tempfile.mkdtemp(prefix="musicgen-saved-"))
        paths = ", ".join(_write(files, contents, rescued))
        raise MusicGenError(
            f"-o {folder}: {_reason(exc)}. The audio is in {paths} instead."
        ) from exc


def _write(files: Sequence[str], contents: Sequence[bytes], folder: Path) -> list[str]:
    """Write files under the first number that is free for all of them; their paths.

    A file appears with all its content, since it is written under another name and then renamed.
    """
    paths = _reserve(files, folder)
    try:
        for path, content in zip(paths, contents, strict=True):
            part = path.with_name(f".{path.name}.part")
            try:
                part.write_bytes(content)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return [str(path) for path in paths]


def _reserve(files: Sequence[str], folder: Path) -> list[Path]:
    """Create empty files with the given names; with -2, -3, ... in all names if one exists."""
    for number in count(1):
        paths = [folder / _numbered(name, number) for name in files]
        created: list[Path] = []
        with suppress(FileExistsError):
            for path in paths:
                path.touch(exist_ok=False)
                created.append(path)
            return paths
        for path in created:
            path.unlink()
    raise AssertionError  # count() does not end


def _numbered(name: str, number: int) -> str:
    stem, suffix = os.path.splitext(name)
    return name if number == 1 else f"{stem}-{number}{suffix}"


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)
