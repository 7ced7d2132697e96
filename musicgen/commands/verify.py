"""Checks that a checkpoint is complete and generates audio, for `scripts/weights verify`."""

from collections.abc import Iterator
from pathlib import Path

import torch

from musicgen.checkpoints.checkpoint import Checkpoint, open_checkpoint
from musicgen.checkpoints.convert import dtype_rule
from musicgen.checkpoints.manifest import read_manifest
from musicgen.checkpoints.tensors import TensorFile
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen
from musicgen.request import Request

SECONDS = 2


def verify(folder: Path) -> Iterator[str]:
    """Yield a line for each check that passed. The first check that fails raises WeightsError with
    the name of the file. A folder in upstream's format has no hashes to check.
    """
    checkpoint = open_checkpoint(folder)
    if checkpoint.manifest is None:
        yield "hashes: none in upstream's format (scripts/weights convert adds them)"
    else:
        checkpoint.manifest.check_unlisted(folder)
        checkpoint.manifest.check_hashes(folder)
        yield f"hashes: {len(checkpoint.manifest.files)} files match manifest.json"
        yield f"dtypes: {check_dtypes(folder)} tensors"
    checkpoint.load_lm(torch.device("meta"), torch.float16)
    yield f"shapes: {describe(checkpoint)}"
    yield f"generation: {generate(folder)}"


def check_dtypes(folder: Path) -> int:
    """Check that each tensor has the dtype that `convert` gives it; the number of tensors."""
    count = 0
    for name in read_manifest(folder).files:
        if not name.endswith(".safetensors"):
            continue
        file = TensorFile(folder / name)
        expected = dtype_rule(name)
        for key, tensor in file.items():
            if tensor.dtype != expected(key, tensor):
                raise WeightsError(
                    f"{folder / name}: {key} is {tensor.dtype}, not {expected(key, tensor)}. "
                    "Convert the checkpoint again."
                )
            count += 1
    return count


def describe(checkpoint: Checkpoint) -> str:
    """The decoder's size, channels and conditioning in words."""
    lm = checkpoint.lm
    parameters = sum(tensor.numel() for tensor in checkpoint.state.values())
    kind = "stereo" if checkpoint.stereo else "mono"
    melody = "follows melodies" if checkpoint.chroma else "text only"
    return (
        f"{lm.num_layers} layers x {lm.dim}, {lm.n_q} codebooks, {parameters / 1e6:.1f} M "
        f"parameters, {kind}, {melody}"
    )


def generate(folder: Path) -> str:
    """Load every model of a checkpoint and generate two seconds of audio."""
    model = MusicGen.load(folder)
    model.load_all()
    [wav] = model.generate(Request(prompt="a calm piano", duration=SECONDS, seed=1)).wavs
    expected = (model.codec.channels, SECONDS * model.codec.sample_rate)
    if wav.shape != expected or not wav.isfinite().all():
        raise WeightsError(
            f"{folder} loads, but generates {tuple(wav.shape)} samples instead of {expected}, or "
            "values that are not finite. Its weights do not belong to a trained model."
        )
    return f"{SECONDS} s of {wav.shape[0]}-channel audio on {model.device}"
