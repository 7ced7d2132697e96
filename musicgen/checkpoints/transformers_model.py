"""A model as transformers saves it: config.json and weights. Does not import transformers."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.reading import damage_reported, find, read_json
from musicgen.checkpoints.tensors import TensorFile
from musicgen.errors import WeightsError

CONFIG_FILE = "config.json"
# Preferred first. Each may be split over several files, which NAME.index.json lists.
READERS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    "model.safetensors": TensorFile,
    "pytorch_model.bin": read_package,
}


@dataclass(frozen=True)
class TransformersModel:
    """A model's configuration and weights.

    `state` was read from `weights_file`. `folder` has the tokenizer's files, if there are any.
    """

    folder: Path
    config: dict[str, Any]
    weights_file: Path
    state: Mapping[str, Tensor]


def read_transformers_model(folder: Path) -> TransformersModel:
    """The model in `folder`. Raises WeightsError for files that are missing or damaged."""
    return TransformersModel(folder, read_config(folder), *_read_state(folder))


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(find(folder, CONFIG_FILE))


def _read_state(folder: Path) -> tuple[Path, Mapping[str, Tensor]]:
    for name, read in READERS.items():
        path, index = folder / name, folder / f"{name}.index.json"
        if path.exists():
            return path, read(path)
        if index.exists():
            with damage_reported(index):
                names = sorted(
                    {Path(part).name for part in read_json(index)["weight_map"].values()}
                )
            return index, ChainMap(*(read(find(folder, part)) for part in names))  # type: ignore[arg-type]
    raise WeightsError(f"{folder} has neither {' nor '.join(READERS)}.")
