"""Temporary files of a server: results until Cog has sent them, and inputs that Cog leaves."""

import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, time

from musicgen.runtime.cancellation import current

# Cog reads a result right after the prediction returns, without telling us when it has finished.
KEEP_SECONDS = 120.0
# Age at which inputs and Cog's folders are removed. Inputs are read when a prediction begins.
LEFTOVER_SECONDS = 600.0
# For each prediction Cog creates <id>/inputs and <id>/outputs here, and never removes them.
COG_FOLDER = Path("/tmp/coglet/predictions")


class ResultFiles:
    """Folders for the results of predictions, each swept after KEEP_SECONDS by a later one."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="musicgen-"))
        self._inputs = self._root / "inputs"
        self._inputs.mkdir()
        self._lock = threading.Lock()
        self._returned: deque[tuple[float, Path]] = deque()  # oldest first
        self._swept = monotonic()
        # The rest is removed when the process ends.
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)

    def receive_inputs(self) -> None:
        """Make this folder the process's temporary folder: Cog leaves failed downloads there."""
        tempfile.tempdir = str(self._inputs)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder for one prediction, removed at once if that fails or is cancelled."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(dir=self._root))
        try:
            yield folder
            current.get().check()
        except BaseException:  # CancelledError is not an Exception
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._returned.append((monotonic(), folder))

    def _sweep(self) -> None:
        now = monotonic()
        for folder in self._expired(now - KEEP_SECONDS):
            shutil.rmtree(folder, ignore_errors=True)
        if self._swept < now - LEFTOVER_SECONDS / 10:
            self._swept = now
            sweep(self._inputs, COG_FOLDER)

    def _expired(self, limit: float) -> list[Path]:
        """Take the folders that were returned before `limit`. Predictions sweep side by side."""
        folders = []
        with self._lock:
            while self._returned and self._returned[0][0] < limit:
                folders.append(self._returned.popleft()[1])
        return folders


def sweep(inputs: Path, cog_folder: Path) -> None:
    """Remove old files in `inputs`, and Cog's old empty folders.

    Cog does not need an empty folder, not even while its prediction runs.
    """
    old = time() - LEFTOVER_SECONDS
    for path in _changed_before(inputs, old):
        if path.is_file():
            path.unlink(missing_ok=True)
    for path in _changed_before(cog_folder, old):
        for folder in (path / "inputs", path / "outputs", path):
            with suppress(OSError):  # not empty, another user's, or gone already
                folder.rmdir()


def _changed_before(folder: Path, limit: float) -> Iterator[Path]:
    """The entries of a folder that were last changed before a time."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < limit:
                    yield path
