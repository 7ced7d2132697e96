"""Files on their way: results until Cog has sent them, and what Cog leaves of predictions."""

import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, time

from musicgen.runtime.cancellation import current

# Results: Cog reads a file as soon as a prediction has returned it, but says nobody when it has.
KEEP_SECONDS = 120.0
# Inputs, which are read when a prediction begins, and Cog's folders.
LEFTOVER_SECONDS = 600.0
# Cog makes <id>/inputs and <id>/outputs here for each prediction, empty, and leaves them.
COG_FOLDER = Path("/tmp/coglet/predictions")


class ResultFiles:
    """Where the files of predictions wait to be sent. Whichever prediction begins sweeps it."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="musicgen-"))
        self._inputs = self._root / "inputs"
        self._inputs.mkdir()
        self._sent: deque[tuple[float, Path]] = deque()  # oldest first
        self._swept = monotonic()
        # With its last contents, when the process ends.
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)

    def receive_inputs(self) -> None:
        """Let this process make its temporary files here: Cog leaves those of failed downloads."""
        tempfile.tempdir = str(self._inputs)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder for one prediction; removed at once if that fails or is given up."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(dir=self._root))
        try:
            yield folder
            current.get().check()
        except BaseException:  # a cancellation is no Exception
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._sent.append((monotonic(), folder))

    def _sweep(self) -> None:
        now = monotonic()
        with suppress(IndexError):  # another thread may have taken the last one
            while self._sent[0][0] < now - KEEP_SECONDS:
                shutil.rmtree(self._sent.popleft()[1], ignore_errors=True)
        if self._swept < now - LEFTOVER_SECONDS / 10:
            self._swept = now
            sweep(self._inputs, COG_FOLDER)


def sweep(inputs: Path, cog_folder: Path) -> None:
    """Remove old files in `inputs`, and of Cog's folders those that are old and empty.

    Cog itself does not miss them, not even while their prediction runs.
    """
    old = time() - LEFTOVER_SECONDS
    for path in _older(inputs, old):
        if path.is_file():
            path.unlink(missing_ok=True)
    for path in _older(cog_folder, old):
        for folder in (path / "inputs", path / "outputs", path):
            with suppress(OSError):  # not empty, somebody else's, or gone already
                folder.rmdir()


def _older(folder: Path, than: float) -> Iterator[Path]:
    """What was last changed before a time."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < than:
                    yield path
