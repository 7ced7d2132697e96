"""Temporary folders of commands and their servers, removed by the next command if left behind.

A folder has a lock file, which its command and the servers that it starts hold locked. The lock
ends with these processes, however they end, so an unlocked folder can be removed.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from musicgen.serving.result_files import COG_FOLDER, sweep

PREFIX = "musicgen-run-"
LOCK = "lock"


@dataclass(frozen=True)
class Folder:
    """A temporary folder, and the descriptor of its lock, which child processes must inherit."""

    path: Path
    lock: int


@contextmanager
def folder() -> Iterator[Folder]:
    """A temporary folder while the context is open. Removes those of ended commands first."""
    remove_leftovers()
    # It gets the prefix that others look for when it is locked.
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    path = hidden.with_name(hidden.name.removeprefix("."))
    try:
        with (hidden / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hidden.rename(path)
            yield Folder(path, lock.fileno())
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of ended commands, and Cog's empty folders of old predictions."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with (
            suppress(OSError),
            (path / LOCK).open("r+") as lock,
        ):  # OSError: another user's, or locked
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    sweep(Path(tempfile.gettempdir()) / f"{PREFIX}none", COG_FOLDER)
