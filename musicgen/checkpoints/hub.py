"""Fetches files from the hub, continues partial downloads, and checks every file's hash.

Two things are not left to huggingface_hub 2.4.0. It discards a partial download when its process
ends (https://github.com/huggingface/huggingface_hub/issues/4196); here it is kept and continued.
Its downloader compares sizes only, and its `verify_repo_checksums` needs a folder with the layout
of one repository; here files of several repositories are hashed, each before it gets its name.
"""

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm import tqdm

from musicgen.checkpoints.manifest import Source
from musicgen.errors import WeightsError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NON_COMMERCIAL = "CC-BY-NC-4.0"
# Known licences. They take precedence over a repository's card, which may not state one.
LICENCES = {
    r"facebook/(musicgen|encodec|multiband).*": NON_COMMERCIAL,
    r"nateraw/musicgen-songstarter.*": NON_COMMERCIAL,
    r"google-t5/.*": "Apache-2.0",
    r"adefossez/.*": "MIT",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a revision. The hub lists its sha256 if it is large, else git's."""

    repo: str
    revision: str
    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    @property
    def url(self) -> str:
        return hf_hub_url(self.repo, self.name, revision=self.revision)

    @property
    def digest(self) -> str:
        return self.sha256 or self.git_sha1 or ""

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this size and hash."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256()
        if not self.sha256:
            digest = hashlib.sha1(f"blob {self.size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Repository:
    """The files of a repository on the hub, and its revision and licence."""

    source: Source
    files: Mapping[str, RemoteFile]

    def find(self, name: str) -> RemoteFile:
        if name not in self.files:
            raise WeightsError(f"{self.source.name} on the hub has no {name}: it is incomplete.")
        return self.files[name]

    def weights(self) -> list[str]:
        """The weight files of a transformers model, safetensors if there are any."""
        for suffix, stem in (("safetensors", "model"), ("bin", "pytorch_model")):
            pattern = re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}(\.index\.json)?")
            if names := [name for name in self.files if pattern.fullmatch(name)]:
                return names
        raise WeightsError(
            f"{self.source.name} on the hub has neither model.safetensors nor pytorch_model.bin."
        )


@dataclass
class Download:
    """Fetches files into a folder and records their sources."""

    folder: Path
    sources: list[Source] = field(default_factory=list)
    bytes: int = 0
    local: Path | None = None  # the folder that was linked

    def link(self, source: Path) -> None:
        """Link every file of `source` into the folder instead of fetching it."""
        self.local = source
        for path in [path for path in source.rglob("*") if path.is_file()]:
            relative = path.relative_to(source)
            if relative.parts[0].startswith("."):
                continue
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path.resolve())
            self.bytes += path.stat().st_size

    def has_local(self, name: str) -> bool:
        """Whether the linked folder has this file or folder."""
        return self.local is not None and (self.local / name).exists()

    def fetch(self, repo: Repository, names: Mapping[str, str]) -> None:
        """Fetch files of `repo`, `names`: local path -> name, except those that are complete.

        Raises WeightsError before the first byte if the disk is too small for the files and their
        converted copies together.
        """
        files = {self.folder / local: repo.find(name) for local, name in names.items()}
        missing = {path: file for path, file in files.items() if not _is_here(path, file)}
        self.bytes += sum(file.size for file in files.values())
        fetched = sum(_partial(p, f).stat().st_size for p, f in missing.items() if _begun(p, f))
        needed = sum(file.size for file in missing.values()) - fetched + self.bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise WeightsError(
                f"{self.folder.parent} needs {needed / 1e9:.2f} GB and has {free / 1e9:.2f} GB "
                "free. Free some space, or name another folder."
            )
        for path, file in missing.items():
            _fetch(file, path)
        self.sources.append(repo.source)


def repository(name: str) -> Repository:
    """The files and the licence of a repository at its newest revision, as the hub lists them."""
    with explained(None, name):
        info = HfApi().model_info(name, files_metadata=True)
    files = {
        item.rfilename: RemoteFile(
            repo=name,
            revision=str(info.sha),
            name=item.rfilename,
            size=item.size or 0,
            sha256=item.lfs.sha256 if item.lfs else None,
            git_sha1=item.blob_id,
        )
        for item in info.siblings or ()
    }
    card = info.card_data.to_dict() if info.card_data else {}
    known = [licence for owner, licence in LICENCES.items() if re.fullmatch(owner, name)]
    licence = known[0] if known else str(card.get("license") or "not stated by its publisher")
    return Repository(Source(name, licence, info.sha), files)


@contextmanager
def explained(folder: Path | None, repo: str = "") -> Iterator[None]:
    """Raise errors of the hub and the disk as WeightsError, with a remedy."""
    try:
        yield
    except GatedRepoError as exc:
        raise WeightsError(
            f"{repo} requires that you accept its terms: do so on the hub, then `hf auth login`."
        ) from exc
    except (RepositoryNotFoundError, HFValidationError) as exc:
        raise WeightsError(
            f"The hub has no model {repo!r}, or it is private. Check the name (OWNER/NAME); for a "
            "private one: `hf auth login`."
        ) from exc
    except OfflineModeIsEnabled as exc:
        raise WeightsError("HF_HUB_OFFLINE is set; unset it to fetch weights.") from exc
    except HTTPError as exc:
        raise WeightsError(
            f"The hub could not be reached, or reported an error ({exc}). Partial downloads are "
            "kept: run the command again to continue."
        ) from exc
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
        raise WeightsError(
            f"The disk of {folder} is full ({exc.strerror}). Partial downloads are kept: free some "
            "space and run the command again to continue."
        ) from exc


def _partial(path: Path, file: RemoteFile) -> Path:
    """Path of a partial download. The hash in the name keeps different revisions apart."""
    return path.with_name(f"{path.name}.{file.digest[:16]}.part")


def _begun(path: Path, file: RemoteFile) -> bool:
    return _partial(path, file).exists()


def _is_here(path: Path, file: RemoteFile) -> bool:
    return path.exists() and file.matches(path)


def _fetch(file: RemoteFile, path: Path) -> None:
    """Download to `path`, continuing a partial one; raises WeightsError if the hash differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path, file)
    _continued(lambda: _append(file, partial), partial)
    if not file.matches(partial):
        partial.unlink()
        raise WeightsError(
            f"{file.repo}/{file.name} arrived damaged: its hash is not the hub's. Run the command "
            "again; if it happens again, a proxy may be changing the files."
        )
    partial.replace(path)


def _append(file: RemoteFile, partial: Path) -> None:
    with partial.open("ab") as stream:
        http_get(
            file.url,
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=f"{file.repo}/{file.name}",
            tqdm_class=tqdm,  # the hub's own bar is hidden if transformers' bars are disabled
        )


def _continued(download: Callable[[], None], partial: Path) -> None:
    """Call `download` again after a broken connection, as long as the file keeps growing."""
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return download()
        except HTTPError:
            if not partial.exists() or partial.stat().st_size <= before:
                raise
            logger.warning("%s: the connection broke, continuing", partial.name)
