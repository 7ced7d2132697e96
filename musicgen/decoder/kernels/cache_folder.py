"""The folder in which Triton keeps compiled kernels and loads them from.

Triton's default is in the home folder. A container without a home, with a read-only file system or
with a `noexec` mount cannot use it, and without a cache folder Triton cannot run kernels at all.

Kernels that were compiled in advance are in a folder of their own, which is only read.
"""

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from musicgen.decoder.kernels import compiler

logger = logging.getLogger(__name__)

GROUP = "__grp__"  # beginning of the name of the file that Triton writes when a kernel is complete
# Kernels that this process asked Triton for: hash -> whether it had to be compiled.
requested: dict[str, bool] = {}


@functools.cache
def ensure_usable() -> None:
    """Replace Triton's default cache folder if it cannot be written to or executed from.

    A folder that TRITON_CACHE_DIR names is used as it is. Kernels that it does not have are looked
    up in the folder that MUSICGEN_PREBUILT_KERNELS names.
    """
    if compiler.triton is None:
        return
    cache, compilation = compiler.triton.knobs.cache, compiler.triton.knobs.compilation
    compilation.listener = _count
    if prebuilt := os.environ.get("MUSICGEN_PREBUILT_KERNELS"):
        cache.manager_class = completed_by(Path(prebuilt))
    if "TRITON_CACHE_DIR" in os.environ:
        return
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


def completed_by(prebuilt: Path) -> Any:
    """A cache manager of Triton that also finds what `prebuilt` has, without writing there."""
    manager: Any = compiler.triton.runtime.cache.FileCacheManager

    class Manager(manager):  # type: ignore[misc]
        """The files of one kernel."""

        def get_file(self, filename: str) -> str | None:
            path = prebuilt / self.key / filename
            return super().get_file(filename) or (str(path) if path.is_file() else None)

        def get_group(self, filename: str) -> dict[str, str] | None:
            """Name -> path of all files of the kernel, if it was completely written."""
            folder = prebuilt / self.key
            found: dict[str, str] | None = super().get_group(filename)
            if found or not (folder / f"{GROUP}{filename}").is_file():
                return found
            # Not the paths that are in the group's file: the folder may have been moved.
            files = (path for path in folder.iterdir() if path.is_file())
            return {p.name: str(p) for p in files if not p.name.startswith(GROUP)}

    return Manager


def _count(*, metadata: dict[str, Any], cache_hit: bool, **_: object) -> None:
    """Triton's listener, called for each kernel that it compiles or finds."""
    # Two threads may ask for the same kernel, and one may find what the other has just compiled.
    requested[metadata["hash"]] = requested.get(metadata["hash"], False) or not cache_hit
