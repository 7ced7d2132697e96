"""Fetches a checkpoint that is a tar at an https address, as Replicate provides weights."""

import errno
import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

from musicgen.errors import WeightsError

TIMEOUT = 60  # seconds without a byte
MAX_MEMBERS = 1_000  # a checkpoint has fewer than 100
MAX_EXTENSION = 2**20  # bytes of one header that extends another, such as a long name
# Types of such headers; tarfile reads their contents into memory.
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
HTTPS_ONLY = "weights are fetched over https only"


def fetch(url: str, root: Path, landmarks: Sequence[str]) -> Path:
    """The checkpoint folder of the tar at `url`: the folder that contains one of `landmarks`.

    The tar is unpacked while it is downloaded, to a folder below `root` whose name is derived from
    the address; a second call uses that folder. Raises WeightsError if the tar cannot be fetched or
    unpacked, or does not contain exactly one checkpoint. No member can be written outside of the
    folder.
    """
    place = urlsplit(url)
    # Without a password, and without the query, which may hold a signature.
    shown = f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"
    if place.scheme != "https":
        raise WeightsError(f"{shown}: {HTTPS_ONLY}.")
    target = root / f"fetched-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    if not target.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            _download(url, target)
        except Exception as exc:  # tarfile and the decompressors may raise any exception
            if isinstance(exc, urllib.error.HTTPError):
                exc.close()  # it holds the connection
            raise WeightsError(f"{shown} could not be fetched and unpacked: {exc}") from exc
    folders = {path.parent for name in landmarks for path in target.rglob(name)}
    if len(folders) != 1:
        shutil.rmtree(target)
        found = "no checkpoint" if not folders else f"{len(folders)} checkpoints"
        raise WeightsError(
            f"{shown} holds {found}. It must hold one folder with {' or '.join(landmarks)}."
        )
    return folders.pop()


class _Member(tarfile.TarInfo):
    """A member with a bounded header, of which damage is an error.

    tarfile itself takes a damaged header for the end of the archive and drops the rest.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in EXTENSIONS and member.size > MAX_EXTENSION:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:
        """tarfile reads the map of a sparse file into memory, however long it is."""
        raise tarfile.ReadError("a sparse file")

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        if len(tar.members) > MAX_MEMBERS:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"more than {MAX_MEMBERS} members")
        if sum(len(value) for value in tar.pax_headers.values()) > MAX_EXTENSION:
            raise tarfile.ReadError(f"global headers of more than {MAX_EXTENSION} bytes")
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"{exc} after {tar.offset} bytes") from exc


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Accept `member` if it is a file or a folder inside of `folder` that fits on the disk.

    Links are refused: a checkpoint needs none, and how safe they are depends on Python's version.
    """
    if not (member.isfile() or member.isdir()):
        raise tarfile.FilterError(f"{member.name!r} is neither a file nor a folder")
    if member.size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"{member.name!r} has {member.size} bytes, more than are free")
    # data_filter refuses absolute paths and paths outside of `folder`.
    return tarfile.data_filter(member, folder)


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only: anyone on the network path can change what http returns."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            fp.close()
            raise WeightsError(f"it redirects to {urlsplit(newurl).scheme}, and {HTTPS_ONLY}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def unpack(path: Path, target: Path) -> None:
    """Unpack the local tar `path` to `target`, unless that exists, under the same rules."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("rb") as file:
            _extract(file, target)
    except Exception as exc:  # tarfile and the decompressors may raise any exception
        raise WeightsError(f"{path} could not be unpacked: {exc}") from exc


def _download(url: str, target: Path) -> None:
    """Unpack the tar at `url` to `target` while it is downloaded."""
    opener = urllib.request.build_opener(_HttpsRedirects)
    with opener.open(url, timeout=TIMEOUT) as response:
        _extract(response, target)


def _extract(stream: Any, target: Path) -> None:
    """Unpack a tar to `target`, which appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as partial:
        inner = Path(partial) / "tar"
        inner.mkdir()
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
            tar.extractall(inner, filter=_plain)
        while stream.read(2**20):
            pass  # data after the archive's end
        # Of a download, the bytes that are left. Cut between two files, it looks like a whole tar.
        if missing := getattr(stream, "length", 0):
            raise tarfile.ReadError(f"{missing} bytes have not arrived")
        inner.rename(target)
