"""Fetches a model, and all that it needs, from the hub; each file is checked against its hash.

huggingface_hub itself compares sizes only, and throws a broken-off download away with the process
that began it. Here every file is hashed, and what was fetched of a file is kept and continued.
"""

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from omegaconf import OmegaConf
from tqdm import tqdm

from musicgen.checkpoints.checkpoint import (
    CODEC_FILE,
    DEMUCS_TENSORS,
    DIFFUSION_FILE,
    open_checkpoint,
)
from musicgen.checkpoints.convert import SOURCES_FILE, TOKENIZER_FILES, convert
from musicgen.checkpoints.files import local_name, read_package
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import Manifest, Source
from musicgen.checkpoints.saved import CONFIG_FILE
from musicgen.checkpoints.upstream import MELODY_SETTINGS, follows_melodies
from musicgen.errors import WeightsError

DOWNLOADS = ".download"  # inside of the checkpoint's folder, until it is converted
DEMUCS = ("adefossez/HTDemucs", "htdemucs.yaml")
DIFFUSION = "facebook/multiband-diffusion"
TEXT_OWNER = "google-t5"  # of the text encoders that a configuration names without one
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NON_COMMERCIAL = "CC-BY-NC-4.0"
# What is known of the licences, whatever a repository's card says or leaves out.
LICENCES = {
    r"facebook/(musicgen|encodec|multiband).*": NON_COMMERCIAL,
    r"nateraw/musicgen-songstarter.*": NON_COMMERCIAL,
    r"google-t5/.*": "Apache-2.0",
    r"adefossez/.*": "MIT",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a revision; the hub knows large ones by sha256, others by git."""

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
        """Whether the file at `path` is this one."""
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
    """What the hub says of a repository."""

    source: Source
    files: Mapping[str, RemoteFile]

    def find(self, name: str) -> RemoteFile:
        if name not in self.files:
            raise WeightsError(f"{self.source.name} on the hub has no {name}: it is incomplete.")
        return self.files[name]

    def weights(self) -> list[str]:
        """The files of a transformers model's weights, safetensors if there are any."""
        for suffix, stem in (("safetensors", "model"), ("bin", "pytorch_model")):
            pattern = re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}(\.index\.json)?")
            if names := [name for name in self.files if pattern.fullmatch(name)]:
                return names
        raise WeightsError(f"{self.source.name} on the hub has no model.safetensors.")


@dataclass
class Download:
    """Files gathered in a folder, and where they came from."""

    folder: Path
    sources: list[Source] = field(default_factory=list)
    bytes: int = 0

    def fetch(self, repo: Repository, names: Mapping[str, str]) -> None:
        """Fetch `names`, local path -> name in `repo`, unless they are here already.

        Raises WeightsError before the first byte if the disk cannot hold them beside what they
        become when converted.
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
                "free. Make room, or name another folder."
            )
        for path, file in missing.items():
            _fetch(file, path)
        self.sources.append(repo.source)


def pull(model: str, folder: Path, *, diffusion: bool = False) -> Manifest:
    """Fetch `model` and what it needs into `folder`, converted. Run again, it continues.

    Raises WeightsError for a repository or file that is not there, a hash that does not match,
    a full disk, or no network.
    """
    if (folder / MANIFEST_FILE).exists():
        raise WeightsError(f"{folder} holds a converted checkpoint already; remove it first.")
    download = Download(folder / DOWNLOADS)
    with explained(folder):
        fetch_model(download, model)
        if diffusion:
            download.fetch(repository(DIFFUSION), {DIFFUSION_FILE: DIFFUSION_FILE})
        sources = json.dumps([asdict(source) for source in download.sources])
        (download.folder / SOURCES_FILE).write_text(sources)
        manifest = convert(download.folder, folder, local_name(model))
    shutil.rmtree(download.folder)
    return manifest


def fetch_model(download: Download, model: str) -> None:
    """The language model, EnCodec, the text encoder, and Demucs for models that follow melodies."""
    repo = repository(model)
    say_licence(repo.source)
    if LM_FILE not in repo.files and CONFIG_FILE in repo.files:
        fetch_saved(download, repo, "")
        if follows_melodies(download.folder):
            download.fetch(repo, {MELODY_SETTINGS: MELODY_SETTINGS})
            fetch_demucs(download)
        return
    download.fetch(repo, {name: name for name in (LM_FILE, CODEC_FILE)})
    checkpoint = open_checkpoint(download.folder)
    codec = read_package(download.folder / CODEC_FILE)
    if "pretrained" in codec:
        name = str(codec["pretrained"])
        fetch_saved(download, repository(name), local_name(name))
    name = checkpoint.text_name
    text = repository(name if "/" in name else f"{TEXT_OWNER}/{name}")
    fetch_saved(download, text, local_name(name))
    if checkpoint.chroma is not None:
        fetch_demucs(download)


def fetch_saved(download: Download, repo: Repository, folder: str) -> None:
    """A model that transformers saved, with its tokenizer if it has one, into a sub-folder."""
    names = [CONFIG_FILE, *repo.weights(), *(n for n in TOKENIZER_FILES if n in repo.files)]
    download.fetch(repo, {f"{folder}/{name}".lstrip("/"): name for name in names})


def fetch_demucs(download: Download) -> None:
    """Demucs as its authors lay it out: a YAML file names the one that holds the model."""
    name, bag = DEMUCS
    repo = repository(name)
    download.fetch(repo, {bag: bag})
    models = OmegaConf.load(download.folder / bag).get("models")
    if not models or len(models) != 1 or not re.fullmatch(r"\w+", str(models[0])):
        raise WeightsError(f"{name}: {bag} names {models}, not one model.")
    download.fetch(repo, {DEMUCS_TENSORS: f"{models[0]}.safetensors"})
    download.sources.pop()  # the repository is listed already


def repository(name: str) -> Repository:
    """Ask the hub for a repository's files and licence, at its newest revision."""
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


def say_licence(source: Source) -> None:
    """Tell the user before the download begins what they may do with the weights."""
    print(f"{source.name} at {source.revision}: licence {source.licence}")
    if "nc" in source.licence.lower().split("-"):
        print("These weights, and what you make with them, are not for commercial use.")


@contextmanager
def explained(folder: Path | None, repo: str = "") -> Iterator[None]:
    """The hub's and the disk's errors as WeightsError, with what to do."""
    try:
        yield
    except GatedRepoError as exc:
        raise WeightsError(
            f"{repo} asks for its terms to be accepted: do so on the hub, then `hf auth login`."
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
            f"The hub did not answer as it should ({exc}). What was fetched is kept: run the "
            "command again to continue."
        ) from exc
    except OSError as exc:
        if exc.errno not in FULL_DISK:
            raise
        raise WeightsError(
            f"No room left for {folder} ({exc.strerror}). What was fetched is kept: make room and "
            "run the command again to continue."
        ) from exc


def _partial(path: Path, file: RemoteFile) -> Path:
    """Where a file grows. Its hash is in the name: another revision's is never continued."""
    return path.with_name(f"{path.name}.{file.digest[:16]}.part")


def _begun(path: Path, file: RemoteFile) -> bool:
    return _partial(path, file).exists()


def _is_here(path: Path, file: RemoteFile) -> bool:
    return path.exists() and file.matches(path)


def _fetch(file: RemoteFile, path: Path) -> None:
    """Download to `path`, continuing what is there of it; raises WeightsError if it differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path, file)
    _continued(lambda: _append(file, partial), partial)
    if not file.matches(partial):
        partial.unlink()
        raise WeightsError(
            f"{file.repo}/{file.name} arrived damaged: its hash is not the hub's. Run the command "
            "again; if it happens again, something between here and the hub changes files."
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
            tqdm_class=tqdm,  # the hub's own hides where transformers' bars are turned off
        )


def _continued(download: Callable[[], None], partial: Path) -> None:
    """Call `download` again for as long as each call brings the file further."""
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return download()
        except HTTPError:
            if not partial.exists() or partial.stat().st_size <= before:
                raise
            logger.warning("%s: the connection broke, continuing", partial.name)
