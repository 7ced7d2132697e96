"""manifest.json of a converted checkpoint: facts of the model, of its files, and their sources."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musicgen.checkpoints.folders import MANIFEST_FILE
from musicgen.checkpoints.reading import damage_reported, read_json
from musicgen.errors import WeightsError

FORMAT = 1
WEIGHT_SUFFIXES = {".bin", ".ckpt", ".model", ".pt", ".pth", ".safetensors", ".th"}


@dataclass(frozen=True)
class Source:
    """Origin of some files: a repository of the hub at a revision, or a local folder."""

    name: str
    licence: str
    revision: str | None = None


@dataclass(frozen=True)
class FileFacts:
    """The size and hash that a file must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json.

    `lm` and `codec` are the sections of the training configurations that inference reads. `codec`
    is None if EnCodec is in a folder as transformers saves it; `codec_folder` is its name.
    """

    format: int
    name: str
    licence: str
    sources: list[Source]
    files: dict[str, FileFacts]
    lm: dict[str, Any]
    codec: dict[str, Any] | None
    codec_folder: str | None

    def write(self, folder: Path) -> None:
        """Write the manifest. Call it last: a folder without one is not a converted checkpoint."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        partial = folder / f"{MANIFEST_FILE}.part"
        partial.write_text(text)
        partial.replace(folder / MANIFEST_FILE)

    def check_sizes(self, folder: Path) -> None:
        """Raise WeightsError, naming the file, if one is missing or has another size.

        Fast, as no file is read. `check_hashes` finds a file that was changed in place.
        """
        for name, facts in self.files.items():
            path = folder / name
            if not path.is_file():
                raise WeightsError(
                    f"{path} is missing (or was renamed); {MANIFEST_FILE} lists it. Pull or "
                    "convert the checkpoint again."
                )
            size = path.stat().st_size
            if size != facts.bytes:
                raise WeightsError(
                    f"{path} has {size} bytes, {MANIFEST_FILE} says {facts.bytes}: it is truncated "
                    "or not the file that was converted. Pull or convert the checkpoint again."
                )

    def check_hashes(self, folder: Path) -> None:
        """Read every file; raises WeightsError naming one that was changed."""
        self.check_sizes(folder)
        for name, facts in self.files.items():
            if sha256(folder / name) != facts.sha256:
                raise WeightsError(
                    f"{folder / name} was changed: its sha256 is not the one in {MANIFEST_FILE}. "
                    "Pull or convert the checkpoint again."
                )

    def check_unlisted(self, folder: Path) -> None:
        """Raise WeightsError if `folder` has weights that the manifest does not list.

        They may be those of another model, written into the folder by mistake.
        """
        files = (path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHT_SUFFIXES)
        names = [path.relative_to(folder).as_posix() for path in files]
        unlisted = [name for name in names if name not in self.files and name[0] != "."]
        if unlisted:
            raise WeightsError(
                f"{folder} has files of another model, which {MANIFEST_FILE} does not list: "
                f"{', '.join(unlisted)}. Remove them, or pull or convert into a new folder."
            )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`. Raises WeightsError if it is damaged or has another format."""
    path = folder / MANIFEST_FILE
    document = read_json(path)
    with damage_reported(path):
        if document["format"] != FORMAT:
            raise WeightsError(
                f"{path} has format {document['format']}, this version reads {FORMAT}. Convert the "
                "checkpoint again with this version."
            )
        document["sources"] = [Source(**source) for source in document["sources"]]
        document["files"] = _files(document["files"])
        manifest = Manifest(**document)
    if not (isinstance(manifest.name, str) and isinstance(manifest.licence, str)):
        raise WeightsError(f"{path}: name or licence is not a string.")
    return manifest


def _files(entries: Mapping[str, Any]) -> dict[str, FileFacts]:
    """Facts of each file; raises ValueError for a path that points outside of the folder."""
    for name in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is outside of the folder")
    return {name: FileFacts(**facts) for name, facts in entries.items()}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileFacts:
    """The size and hash of an existing file."""
    return FileFacts(path.stat().st_size, sha256(path))
