"""The file of Demucs, which separates a song into stems.

Upstream has two formats: a pickle (`htdemucs.th`) that refers to the model's class, and the
safetensors of its hub repository, which hold the name of the class. Only an HTDemucs is loaded.
"""

import inspect
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.reading import damage_reported
from musicgen.checkpoints.tensors import TensorFile
from musicgen.errors import WeightsError

if TYPE_CHECKING:
    from demucs.htdemucs import HTDemucs

CLASS = "demucs.htdemucs.HTDemucs"
DEFAULT_SEGMENT = 10  # seconds, of HTDemucs
MAX_NUMBER = 2**20  # of any argument
MAX_COUNT = 64  # of layers and of stems
COUNTS = ("dconv_depth", "depth", "multi_freqs_depth", "t_layers")
MAX_SEGMENT = 60  # seconds


@dataclass(frozen=True)
class DemucsFile:
    """The arguments of HTDemucs and its state, as read from a file."""

    path: Path
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Mapping[str, Tensor]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file of this model."""
        return {
            "klass": CLASS,
            "args": json.dumps([_encode(value) for value in self.args]),
            "kwargs": json.dumps({key: _encode(value) for key, value in self.kwargs.items()}),
        }

    @property
    def segment(self) -> float:
        """Seconds of audio that the model processes at a time."""
        with damage_reported(self.path):
            return float(self.kwargs.get("segment", DEFAULT_SEGMENT))

    def load(self) -> "HTDemucs":
        """The model on the CPU, in fp32 as audiocraft runs it."""
        from demucs.htdemucs import HTDemucs  # takes seconds to import

        with damage_reported(self.path):
            _check_arguments(inspect.signature(HTDemucs).bind(*self.args, **self.kwargs).arguments)
            with torch.device("meta"):  # without random initial weights: the state has them all
                model = HTDemucs(*self.args, **self.kwargs)
            state = {name: value.float() for name, value in self.state.items()}
            model.load_state_dict(state, assign=True)
        return model.eval()


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that would take too much memory or time."""
    limits = dict.fromkeys(COUNTS, MAX_COUNT) | {"segment": MAX_SEGMENT}
    for name, value in arguments.items():
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > MAX_COUNT:
            raise ValueError(f"{name} has {len(items)} items, more than {MAX_COUNT}")
        for item in items:
            limit = limits.get(name, MAX_NUMBER)
            if isinstance(item, int | float | Fraction) and not -limit <= item <= limit:
                raise ValueError(f"{name}={reprlib.repr(item)} is not a number up to {limit}")


def open_demucs(path: Path) -> DemucsFile:
    """Read a file in either format; raises WeightsError unless it holds an HTDemucs."""
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    with damage_reported(path):
        name, args, kwargs, state = reader(path)
        if name != CLASS:
            raise WeightsError(f"{path} is a {name}, not {CLASS}.")
        return DemucsFile(path, tuple(args), dict(kwargs), state)


def _read_pickle(path: Path) -> tuple[str, Any, Any, Mapping[str, Tensor]]:
    package = read_package(path, ((_named, CLASS), (_fraction, "fractions.Fraction")))
    klass = package["klass"]
    name = CLASS if klass is _named else str(klass)
    return name, package["args"], package["kwargs"], package["state"]


def _named(*_: object) -> None:
    """Placeholder for the class: a pickle may refer to it, but not call it."""
    raise ValueError(f"{CLASS} is called in it")


def _fraction(*parts: Any) -> Fraction:
    """The Fraction that a pickle describes by 39 and 5, or by "39/5".

    Fraction("1e999999999") would compute a number of a billion digits.
    """
    numbers = str(parts[0]).split("/") if len(parts) == 1 else parts
    return Fraction(*map(int, numbers))


def _read_safetensors(path: Path) -> tuple[str, Any, Any, Mapping[str, Tensor]]:
    file = TensorFile(path)
    args, kwargs = (_decode(json.loads(file.metadata[key])) for key in ("args", "kwargs"))
    return file.metadata["klass"], args, kwargs, file


def _encode(value: Any) -> Any:
    """`value` as demucs.hf reads it from JSON: a fraction is an object with that `_type`."""
    if isinstance(value, Fraction):
        return {
            "_type": "fraction",
            "numerator": value.numerator,
            "denominator": value.denominator,
        }
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("_type") == "fraction":
        return Fraction(value["numerator"], value["denominator"])
    return {key: _decode(item) for key, item in value.items()}
