"""Imports librosa in one process at a time.

Importing it the first time compiles functions, which Numba caches beside librosa or in the user's
folder. Numba keeps a generalized ufunc in two files of which one refers to the other by a name of
the process that compiled it. Where two processes compile at once, such as two pages after an
installation, the cache may get one file of each, and every later process crashes when it calls
the function.
"""

import fcntl
import functools
import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType


@functools.cache
def librosa() -> ModuleType:
    """librosa, with the parts that are compiled imported; this may take several seconds."""
    spec = importlib.util.find_spec("librosa")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'librosa'", name="librosa")
    with Path(spec.origin).open("rb") as file:
        with suppress(OSError):  # some network file systems lock no file that is open for reading
            fcntl.flock(file, fcntl.LOCK_EX)
        import librosa.beat
        import librosa.feature
        import librosa.onset
    return librosa
