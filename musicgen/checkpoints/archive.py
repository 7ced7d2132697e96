"""Fetches a checkpoint that is a tar on the web, which is how Replicate hands weights over."""

import errno
import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from musicgen.errors import WeightsError

TIMEOUT = 60  # seconds without a byte


def fetch(url: str, root: Path, landmarks: Sequence[str]) -> Path:
    """The checkpoint folder in the tar at `url`: the one that holds one of `landmarks`.

    It is unpacked as it arrives, below `root`, under a name made of the address: a second call
    finds it there. Raises WeightsError if it cannot be fetched or unpacked, or holds no
    checkpoint or several. Nothing in it can be written outside of its folder.
    """
    place = urlsplit(url)
    shown = f"{place.scheme}://{place.hostname}{place.path}"  # the query may hold a signature
    if place.scheme != "https":
        raise WeightsError(f"{shown}: weights are fetched over https only.")
    target = root / f"fetched-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    if not target.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            _unpack(url, target)
        except Exception as exc:  # a damaged header makes tarfile and its unpackers raise anything
            raise WeightsError(f"{shown} could not be fetched and unpacked: {exc}") from exc
    folders = {path.parent for name in landmarks for path in target.rglob(name)}
    if len(folders) != 1:
        shutil.rmtree(target)
        found = "no checkpoint" if not folders else f"{len(folders)} checkpoints"
        raise WeightsError(f"{shown} holds {found}; one folder with {' or '.join(landmarks)}.")
    return folders.pop()


class _Member(tarfile.TarInfo):
    """A damaged header is an error: tarfile takes it for the archive's end, and drops the rest."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"{exc} after {tar.offset} bytes") from exc


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Files and folders inside of `folder`, as many as the disk has room for.

    A checkpoint needs no links, and what they can do depends on the version of Python.
    """
    if not (member.isfile() or member.isdir()):
        raise tarfile.FilterError(f"{member.name!r} is neither a file nor a folder")
    if member.size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"{member.name!r} has {member.size} bytes, more than are free")
    # "data" refuses absolute paths and paths to the outside.
    return tarfile.data_filter(member, folder)


def _unpack(url: str, target: Path) -> None:
    """Into a folder that gets its name only when all of it is there."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as partial:
        inner = Path(partial) / "tar"
        inner.mkdir()
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            tarfile.open(fileobj=response, mode="r|*", tarinfo=_Member) as tar,
        ):
            tar.extractall(inner, filter=_plain)
            while response.read(2**20):
                pass  # what may follow the archive's end
            if response.length:  # cut between two files, which looks like the archive's end
                raise tarfile.ReadError(f"{response.length} bytes have not arrived")
        inner.rename(target)
