"""The configuration and weights of EnCodec, in either of the two formats that checkpoints use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from musicgen.checkpoints.transformers_model import CONFIG_FILE, TransformersModel

AUDIOCRAFT, TRANSFORMERS = "audiocraft", "transformers"


@dataclass(frozen=True)
class EncodecFiles:
    """EnCodec of a folder. `library` is the library whose names `config` and `state` use.

    `config` was read from `config_file`.
    """

    library: str  # AUDIOCRAFT or TRANSFORMERS
    config_file: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @classmethod
    def from_transformers(cls, model: TransformersModel) -> "EncodecFiles":
        return cls(TRANSFORMERS, model.folder / CONFIG_FILE, model.config, model.state)
