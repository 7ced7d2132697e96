"""Fetches a checkpoint that is a tar on the web, which is how Replicate hands weights over."""

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
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
        except (OSError, HTTPException, tarfile.TarError, EOFError) as exc:
            raise WeightsError(f"{shown} could not be fetched and unpacked: {exc}") from exc
    folders = {path.parent for name in landmarks for path in target.rglob(name)}
    if len(folders) != 1:
        shutil.rmtree(target)
        found = "no checkpoint" if not folders else f"{len(folders)} checkpoints"
        raise WeightsError(f"{shown} holds {found}; one folder with {' or '.join(landmarks)}.")
    return folders.pop()


def _unpack(url: str, target: Path) -> None:
    """Into a folder that gets its name only when all of it is there."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as partial:
        inner = Path(partial) / "tar"
        inner.mkdir()
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            tarfile.open(fileobj=response, mode="r|*") as tar,
        ):
            # "data" refuses absolute paths, paths and links to the outside, and devices.
            tar.extractall(inner, filter="data")
            while response.read(2**20):
                pass  # what may follow the archive's end
            if response.length:  # cut between two files, which looks like the archive's end
                raise tarfile.ReadError(f"{response.length} bytes have not arrived")
        inner.rename(target)
