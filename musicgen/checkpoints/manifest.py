"""manifest.json of a converted checkpoint: what the model is, its files, where they came from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musicgen.checkpoints.files import damage_reported, read_json
from musicgen.checkpoints.folders import MANIFEST_FILE
from musicgen.errors import WeightsError

FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where some files came from: a repository of the hub at a revision, or a local folder."""

    name: str
    licence: str
    revision: str | None = None


@dataclass(frozen=True)
class FileFacts:
    """What a file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`lm` and `codec` are what inference reads of the two training configurations.

    `codec` is None where EnCodec is a folder of transformers', `codec_folder`.
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
        """Write it last of all files: a folder without it is not a converted checkpoint."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        partial = folder / f"{MANIFEST_FILE}.part"
        partial.write_text(text)
        partial.replace(folder / MANIFEST_FILE)

    def check_sizes(self, folder: Path) -> None:
        """Raises WeightsError naming a file that is missing, renamed, truncated or too long.

        Costs one look at each file's entry. A file changed in place is `check_hashes`' to find.
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
        """Read every file whole; raises WeightsError naming one that was changed."""
        self.check_sizes(folder)
        for name, facts in self.files.items():
            if sha256(folder / name) != facts.sha256:
                raise WeightsError(
                    f"{folder / name} was changed: its sha256 is not the one in {MANIFEST_FILE}. "
                    "Pull or convert the checkpoint again."
                )


def read_manifest(folder: Path) -> Manifest:
    """A folder's manifest. Raises WeightsError if it is damaged or of another format."""
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
        raise WeightsError(f"{path} has a name or a licence that is no text.")
    return manifest


def _files(entries: Mapping[str, Any]) -> dict[str, FileFacts]:
    """Names are paths inside the folder, so that a manifest cannot point outside of it."""
    for name in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is outside of the folder")
    return {name: FileFacts(**facts) for name, facts in entries.items()}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileFacts:
    """What the manifest says of a file that is there."""
    return FileFacts(path.stat().st_size, sha256(path))
