"""Keeps the upload key in the process that uploads, and out of the environment of all others.

A variable that a process was started with stays readable in /proc/PID/environ, and its child
processes inherit it. So the commands erase UPLOAD_KEY when they start, and pass it through a pipe
that only the first reader can read.
"""

import ctypes
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from musicgen.errors import MusicGenError

VARIABLE = "UPLOAD_KEY"
FILE_VARIABLE = "UPLOAD_KEY_FILE"  # the path of a file that holds the key
PIPE_BYTES = 65_536  # that a pipe accepts without a reader

_LIBC = ctypes.CDLL(None)
_LIBC.getenv.restype = ctypes.c_void_p
_LIBC.strlen.argtypes = (ctypes.c_void_p,)
_LIBC.strlen.restype = ctypes.c_size_t


def take(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """The key, which is removed from the environment; None if there is none.

    Raises MusicGenError if the file of UPLOAD_KEY_FILE cannot be read.
    """
    path = environ.pop(FILE_VARIABLE, None)
    if environ is os.environ:
        _erase()
    key = environ.pop(VARIABLE, None)
    if key is not None or not path:
        return key
    try:
        return Path(path).read_text().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeError) as exc:
        raise MusicGenError(f"{FILE_VARIABLE}={path!r} cannot be read: {exc}.") from exc


@contextmanager
def pipe(key: str | None) -> Iterator[tuple[dict[str, str], list[int]]]:
    """What a server needs to read the key: environment variables, and descriptors to inherit."""
    if key is None:
        yield {}, []
        return
    content = key.encode("utf-8", "surrogateescape")
    if len(content) > PIPE_BYTES:
        raise MusicGenError(f"{VARIABLE} has more than {PIPE_BYTES:,} bytes.")
    source, sink = os.pipe()
    try:
        with open(sink, "wb") as stream:
            stream.write(content)
        yield {FILE_VARIABLE: f"/dev/fd/{source}"}, [source]
    finally:
        os.close(source)


def _erase() -> None:
    """Overwrite the value with which this process was started."""
    address = _LIBC.getenv(VARIABLE.encode())
    if address:
        ctypes.memset(address, 0, _LIBC.strlen(address))
