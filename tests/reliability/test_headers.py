"""safetensors files whose header lies: named, and nothing of them is loaded."""

import json

import pytest
import torch
from broken import believed, load
from safetensors.torch import load_file, save_file

from musicgen.errors import WeightsError


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def entry(dtype="F32", shape=(16,), offsets=(0, 64)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "size": (2**62).to_bytes(8, "little") + b"{}",
    "negative": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "beyond the file": header(x=entry(shape=(2**40,), offsets=(0, 2**42))),
    "backwards": header(x=entry(offsets=(64, 0))),
    "overlap": header(x=entry(), y=entry()),
    "hole": header(x=entry(shape=(1,), offsets=(60, 64))),
    "shape": header(x=entry(shape=(17,))),
    "overflow": header(x=entry(shape=(2**32, 2**32))),
    "no number": header(x=entry(shape=("16",))),
    "dtype": header(x=entry(dtype="F8_E4M3", shape=(64,))),
    "unknown dtype": header(x=entry(dtype="X")),
    "metadata": header(x=entry(), __metadata__={"format": 3}),
    "nothing": header(),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ["lm", "codec", "htdemucs", "t5-base/model"])
def test_a_header_that_lies_is_named(converted, name, lie):
    path = converted / f"{name}.safetensors"
    path.write_bytes(LIES[lie])
    believed(converted)
    with pytest.raises(WeightsError, match=str(path.parent)):
        load(converted)


def test_a_tensor_that_only_claims_to_be_there_is_named(converted):
    """The right names with nothing in them."""
    path = converted / "lm.safetensors"
    save_file({name: torch.zeros(0) for name in load_file(path)}, path)
    believed(converted)
    with pytest.raises(WeightsError, match=r"lm\.safetensors"):
        load(converted)
