"""A model's folder as transformers saves it: config.json and weights. Needs no transformers."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from musicgen.checkpoints.files import damage_reported, find, read_json, read_package
from musicgen.checkpoints.tensors import TensorFile
from musicgen.errors import WeightsError

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Saved:
    """A model as transformers saves it; `folder` has the tokenizer's files, if any."""

    folder: Path
    config: dict[str, Any]
    state: Mapping[str, Tensor]


def read_saved(folder: Path) -> Saved:
    """A model's folder; safetensors are preferred, and pickles read as tensors and plain data."""
    return Saved(folder, read_config(folder), read_state(folder))


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(find(folder, CONFIG_FILE))


def read_state(folder: Path) -> Mapping[str, Tensor]:
    for name, read in (("model.safetensors", TensorFile), ("pytorch_model.bin", read_package)):
        if (folder / name).exists():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            with damage_reported(index):
                names = set(read_json(index)["weight_map"].values())
            return ChainMap(*(read(find(folder, Path(part).name)) for part in sorted(names)))  # type: ignore[arg-type]
    raise WeightsError(f"{folder} has neither model.safetensors nor pytorch_model.bin.")
