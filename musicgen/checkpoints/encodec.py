"""EnCodec's files, in either of the two forms in which checkpoints have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from musicgen.checkpoints.saved import Saved, read_saved

AUDIOCRAFT, TRANSFORMERS = "audiocraft", "transformers"


@dataclass(frozen=True)
class EncodecFiles:
    """What a folder holds of EnCodec; `library` says whose names configuration and weights have."""

    library: str  # AUDIOCRAFT or TRANSFORMERS
    folder: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]


def transformers_files(folder: Path) -> EncodecFiles:
    """EnCodec in a folder of its own, as transformers saves it."""
    return from_saved(read_saved(folder))


def from_saved(saved: Saved) -> EncodecFiles:
    """EnCodec that was part of something that transformers saved."""
    return EncodecFiles(TRANSFORMERS, saved.folder, saved.config, saved.state)
