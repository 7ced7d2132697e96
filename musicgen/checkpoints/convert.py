"""Converts a checkpoint in an upstream format to safetensors and a manifest, which load fast.

The language model's matrices become fp16 where that loses nothing, as in upstream's files. Other
matrices keep their precision, and only a GPU rounds them, as in audiocraft. EnCodec, embeddings and
norms, which every backend computes in fp32, keep the precision of upstream's file. Demucs, the text
encoder and the projections of text and melody become fp32, in which audiocraft runs them.
Multi-Band Diffusion is copied unchanged.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen.checkpoints.checkpoint import (
    CODEC_TENSORS,
    DEMUCS_TENSORS,
    DIFFUSION_FILE,
    ENCODEC_FOLDER,
    LM_TENSORS,
    OPENERS,
    PROVIDER_PREFIX,
    TUNED_PREFIX,
    Checkpoint,
    open_checkpoint,
)
from musicgen.checkpoints.demucs_file import open_demucs
from musicgen.checkpoints.encodec_files import TRANSFORMERS, EncodecFiles
from musicgen.checkpoints.folders import LM_FILE
from musicgen.checkpoints.manifest import FORMAT, FileFacts, Manifest, Source, describe_file
from musicgen.checkpoints.reading import damage_reported, local_name
from musicgen.checkpoints.tensors import write_tensors
from musicgen.checkpoints.transformers_model import (
    CONFIG_FILE,
    TransformersModel,
)
from musicgen.checkpoints.transformers_musicgen import Stacked, open_musicgen
from musicgen.decoder.weights import is_float16
from musicgen.errors import WeightsError

TOKENIZER_FILES = (
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
)
SOURCES_FILE = "sources.json"  # written by `pull`: where the files came from
UNKNOWN_LICENCE = "unknown; Meta's MusicGen weights are CC-BY-NC-4.0 (no commercial use)"

DtypeRule = Callable[[str, Tensor], torch.dtype]  # (name, tensor) -> dtype on the disk


@dataclass
class Target:
    """Writes the files of a converted checkpoint, and records them for its manifest."""

    folder: Path
    files: dict[str, FileFacts] = field(default_factory=dict)

    def write_tensors(
        self,
        name: str,
        state: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a safetensors file in the precision of `dtype_rule`."""
        path = self._path(name)
        digest = write_tensors(path, state, dtype_rule(name), metadata)
        self.files[name] = FileFacts(path.stat().st_size, digest)

    def write_text(self, name: str, text: str) -> None:
        path = self._path(name)
        path.write_text(text)
        self.files[name] = describe_file(path)

    def copy(self, name: str, source: Path) -> None:
        """Copy a file, if it exists."""
        if source.exists():
            path = self._path(name)
            shutil.copyfile(source, path)
            self.files[name] = describe_file(path)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def convert(source: Path, folder: Path, name: str | None = None) -> Manifest:
    """Write the checkpoint in `source` to `folder`, which must not hold one yet.

    The manifest is written last, so an interrupted conversion never looks like a checkpoint. Raises
    WeightsError for a source that is damaged, incomplete or not a MusicGen model.
    """
    checkpoint, text_encoder = open_source(source)
    if any((folder / name).exists() for name in OPENERS) or folder.resolve() == source.resolve():
        raise WeightsError(f"{folder} holds a checkpoint already; name another folder.")
    checkpoint.load_lm(torch.device("meta"), torch.float16)  # checks the shapes
    target = Target(folder)
    if checkpoint.separates:
        write_demucs(checkpoint.demucs_file, target)
    write_text_encoder(text_encoder, checkpoint.text_name, target)
    codec = write_codec(checkpoint.codec(), target)
    target.copy(DIFFUSION_FILE, source / DIFFUSION_FILE)
    target.write_tensors(LM_TENSORS, without_text_encoder(checkpoint.state))
    sources = read_sources(source)
    manifest = Manifest(
        format=FORMAT,
        name=name or checkpoint.name,
        licence=sources[0].licence,
        sources=sources,
        files=target.files,
        lm=lm_facts(checkpoint),
        codec=codec,
        codec_folder=None if codec else ENCODEC_FOLDER,
    )
    manifest.write(folder)
    return manifest


def open_source(folder: Path) -> tuple[Checkpoint, TransformersModel]:
    """The checkpoint in `folder`, in either upstream format, and its text encoder."""
    if not (folder / LM_FILE).exists() and (folder / CONFIG_FILE).exists():
        return open_musicgen(folder)
    checkpoint = open_checkpoint(folder)
    if checkpoint.manifest is not None:
        raise WeightsError(f"{folder} is converted already.")
    return checkpoint, checkpoint.text_encoder()


def without_text_encoder(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` without a tuned text encoder, which becomes a folder of its own."""
    return Stacked(state, {key: [key] for key in state if not key.startswith(TUNED_PREFIX)})


def lm_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the language model for the manifest."""
    config = checkpoint.config.copy()
    # The folder of the text encoder now has the tuned weights.
    OmegaConf.update(config, "conditioners.description.t5.finetune", False, force_add=True)
    return plain(config)


def lm_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """fp16 for a matrix if that loses nothing, fp32 for projections; others keep their dtype."""
    if name.startswith(PROVIDER_PREFIX):
        return torch.float32
    if tensor.dim() != 2 or name.startswith("emb."):
        return tensor.dtype
    # Values too large for fp16 select it as well: writing them is then refused by name.
    narrow = is_float16(tensor) or not tensor.half().isfinite().all()
    return torch.float16 if narrow else tensor.dtype


def as_shipped(name: str, tensor: Tensor) -> torch.dtype:
    """The precision of upstream's file; it is widened when loaded."""
    return tensor.dtype


def as_float32(name: str, tensor: Tensor) -> torch.dtype:
    """fp32 for floating point; flags and counters keep their dtype."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


# file -> the dtype of each of its tensors; other files are fp32
DTYPES: dict[str, DtypeRule] = {LM_TENSORS: lm_dtype, CODEC_TENSORS: as_shipped}


def dtype_rule(file: str) -> DtypeRule:
    """The dtype that the tensors of a converted checkpoint's `file` have."""
    return DTYPES.get(file, as_float32)


def write_demucs(path: Path, target: Target) -> None:
    """Write Demucs in the format of its authors' hub repository."""
    demucs = open_demucs(path)
    target.write_tensors(DEMUCS_TENSORS, demucs.state, demucs.metadata)


def write_text_encoder(model: TransformersModel, name: str, target: Target) -> None:
    """Write T5's encoder and tokenizer, without the decoder that upstream's files contain."""
    tied = "encoder.embed_tokens.weight" if "shared.weight" in model.state else None
    state = {
        key: value
        for key, value in model.state.items()
        if key != tied and key.startswith(("shared.", "encoder."))
    }
    if not state:
        raise WeightsError(f"{model.weights_file} does not hold a text encoder.")
    _write_model(model.config, state, local_name(name), target)
    for file in TOKENIZER_FILES:
        target.copy(f"{local_name(name)}/{file}", model.folder / file)


def write_codec(codec: EncodecFiles, target: Target) -> dict[str, Any] | None:
    """Write EnCodec; returns the settings of audiocraft's, None for a folder of its own."""
    if codec.library == TRANSFORMERS:
        _write_model(codec.config, codec.state, ENCODEC_FOLDER, target)
        return None
    target.write_tensors(CODEC_TENSORS, codec.state)
    return plain(codec.config)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary for the manifest."""
    found: dict[str, Any] = OmegaConf.to_container(config)
    return found


def read_sources(folder: Path) -> list[Source]:
    """Where the files came from, as written by `pull`; otherwise just the folder's name."""
    path = folder / SOURCES_FILE
    if not path.exists():
        return [Source(folder.resolve().name, UNKNOWN_LICENCE)]
    with damage_reported(path):
        return [Source(**source) for source in json.loads(path.read_text())]


def _write_model(
    config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, target: Target
) -> None:
    # transformers loads in the dtype of the configuration, whatever the dtype of the file.
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    target.write_text(f"{name}/{CONFIG_FILE}", json.dumps({**config, "dtype": "float32"}, indent=2))
    target.write_tensors(f"{name}/model.safetensors", state)
