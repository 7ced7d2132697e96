"""The folder in which Triton keeps compiled kernels and loads them from.

Triton's default is in the home folder. A container without a home, with a read-only file system or
with a `noexec` mount cannot use it, and without a cache folder Triton cannot run kernels at all.
"""

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

from musicgen.decoder.kernels import compiler

logger = logging.getLogger(__name__)


@functools.cache
def ensure_usable() -> None:
    """Replace Triton's default cache folder if it cannot be written to or executed from.

    A folder that TRITON_CACHE_DIR names is used as it is: a complete one may be read-only.
    """
    if compiler.triton is None or "TRITON_CACHE_DIR" in os.environ:
        return
    cache = compiler.triton.knobs.cache
    default = Path(cache.dir)
    found = next((folder for folder in (default, *_others()) if is_usable(folder)), None)
    if found is None:
        logger.error("no folder can hold Triton's kernels; set TRITON_CACHE_DIR to a writable one")
    elif found != default:
        logger.warning("Triton's kernels are kept in %s: %s cannot be used", found, default)
        cache.dir = str(found)


def is_usable(folder: Path) -> bool:
    """Whether files can be written to the folder and executed, and no other user can change it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            status = folder.stat()
    except OSError:
        return False
    writable_by_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    executable = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return status.st_uid == os.getuid() and not writable_by_others and executable


def _others() -> list[Path]:
    """Folders in place of the default, in this order."""
    caches = os.environ.get("XDG_CACHE_HOME")
    named = [Path(caches) / "musicgen-triton"] if caches else []
    return [*named, Path(tempfile.gettempdir()) / f"musicgen-triton-{os.getuid()}"]
