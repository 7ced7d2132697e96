"""A safetensors file with a false header is refused by name, and nothing of it is loaded."""

import json

import pytest
import torch
from broken import believed, load
from safetensors.torch import load_file, save_file

from musicgen.errors import WeightsError


def header_of(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def entry(dtype="F32", shape=(16,), offsets=(0, 64)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FALSE_HEADERS = {
    "size": (2**62).to_bytes(8, "little") + b"{}",
    "negative": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "beyond the file": header_of(x=entry(shape=(2**40,), offsets=(0, 2**42))),
    "backwards": header_of(x=entry(offsets=(64, 0))),
    "overlap": header_of(x=entry(), y=entry()),
    "hole": header_of(x=entry(shape=(1,), offsets=(60, 64))),
    "shape": header_of(x=entry(shape=(17,))),
    "overflow": header_of(x=entry(shape=(2**32, 2**32))),
    "no number": header_of(x=entry(shape=("16",))),
    "dtype": header_of(x=entry(dtype="F8_E4M3", shape=(64,))),
    "unknown dtype": header_of(x=entry(dtype="X")),
    "metadata": header_of(x=entry(), __metadata__={"format": 3}),
    "nothing": header_of(),
}


@pytest.mark.parametrize("header", FALSE_HEADERS)
@pytest.mark.parametrize("name", ["lm", "codec", "htdemucs", "t5-base/model"])
def test_a_false_header_is_named(converted, name, header):
    path = converted / f"{name}.safetensors"
    path.write_bytes(FALSE_HEADERS[header])
    believed(converted)
    with pytest.raises(WeightsError, match=str(path.parent)):
        load(converted)


def test_an_empty_tensor_in_the_place_of_weights_is_named(converted):
    """The right names, with tensors of no elements."""
    path = converted / "lm.safetensors"
    save_file({name: torch.zeros(0) for name in load_file(path)}, path)
    believed(converted)
    with pytest.raises(WeightsError, match=r"lm\.safetensors"):
        load(converted)
