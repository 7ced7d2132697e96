"""A checkpoint in upstream's format -> safetensors and a manifest, which load as fast as the disk.

The language model's matrices become fp16 where every number of theirs is one, as upstream ships
them; others stay as they are, and are rounded on a GPU only, as in audiocraft. What every backend
computes in fp32 (EnCodec, embeddings and norms) keeps the precision that upstream ships.
Demucs, the text encoder and the projections of text and melody become fp32, as audiocraft runs
them: exact, wherever upstream ships fp16. Multi-Band Diffusion is copied as it is.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from musicgen.checkpoints.checkpoint import (
    CODEC_TENSORS,
    DEMUCS_TENSORS,
    DIFFUSION_FILE,
    ENCODEC_FOLDER,
    LM_TENSORS,
    OPENERS,
    PROVIDER_PREFIX,
)
from musicgen.checkpoints.demucs import open_demucs
from musicgen.checkpoints.encodec import TRANSFORMERS, EncodecFiles
from musicgen.checkpoints.files import damage_reported, local_name
from musicgen.checkpoints.manifest import FORMAT, FileFacts, Manifest, Source, describe_file
from musicgen.checkpoints.saved import CONFIG_FILE, Saved
from musicgen.checkpoints.tensors import write_tensors
from musicgen.checkpoints.upstream import open_upstream
from musicgen.decoder.weights import is_float16
from musicgen.errors import WeightsError

# What inference reads of the training configurations.
LM_SECTIONS = (
    "transformer_lm",
    "codebooks_pattern",
    "conditioners",
    "fuser",
    "interleave_stereo_codebooks",
)
CODEC_SECTIONS = ("compression_model", "encodec", "seanet")
TOKENIZER_FILES = (
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
)
SOURCES_FILE = "sources.json"  # what `pull` says about the files that it fetched
UNKNOWN_LICENCE = "unknown; Meta's MusicGen weights are CC-BY-NC-4.0 (no commercial use)"

DtypeRule = Callable[[str, Tensor], torch.dtype]  # (name, tensor) -> dtype on the disk


@dataclass
class Target:
    """A folder that is being filled, and what its manifest will say of the files."""

    folder: Path
    files: dict[str, FileFacts] = field(default_factory=dict)

    def tensors(
        self,
        name: str,
        state: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a safetensors file in the precision that `dtype_rule` gives it."""
        path = self._path(name)
        digest = write_tensors(path, state, dtype_rule(name), metadata)
        self.files[name] = FileFacts(path.stat().st_size, digest)

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        path = self._path(name)
        path.write_text(text)
        self.files[name] = describe_file(path)

    def copy(self, name: str, source: Path) -> None:
        """Copy a file; one that is not there is left out."""
        if source.exists():
            path = self._path(name)
            shutil.copyfile(source, path)
            self.files[name] = describe_file(path)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def convert(source: Path, folder: Path, name: str | None = None) -> Manifest:
    """Write the checkpoint in `source` to `folder`, which may not hold one yet.

    The manifest comes last, so an interrupted conversion never looks like a checkpoint. Raises
    WeightsError for a source that is damaged, incomplete or not a MusicGen model.
    """
    upstream = open_upstream(source)
    checkpoint = upstream.checkpoint
    if any((folder / name).exists() for name in OPENERS) or folder.resolve() == source.resolve():
        raise WeightsError(f"{folder} holds a checkpoint already; name another folder.")
    checkpoint.load_lm(torch.device("meta"), torch.float16)  # are its shapes right?
    target = Target(folder)
    if checkpoint.separates:
        write_demucs(checkpoint.demucs_file, target)
    write_text_encoder(upstream.text, checkpoint.text_name, target)
    codec = write_codec(upstream.codec, target)
    target.copy(DIFFUSION_FILE, source / DIFFUSION_FILE)
    target.tensors(LM_TENSORS, checkpoint.state)
    sources = read_sources(source)
    manifest = Manifest(
        format=FORMAT,
        name=name or checkpoint.name,
        licence=sources[0].licence,
        sources=sources,
        files=target.files,
        lm=lm_facts(checkpoint.config),
        codec=codec,
        codec_folder=None if codec else ENCODEC_FOLDER,
    )
    manifest.write(folder)
    return manifest


def lm_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """fp16 for what is multiplied if it loses nothing, fp32 for projections; the rest as it is."""
    if name.startswith(PROVIDER_PREFIX):
        return torch.float32
    if tensor.dim() != 2 or name.startswith("emb."):
        return tensor.dtype
    # What no GPU could hold as fp16 becomes it, too: writing it is then refused by name.
    return (
        torch.float16 if is_float16(tensor) or not tensor.half().isfinite().all() else tensor.dtype
    )


def as_shipped(name: str, tensor: Tensor) -> torch.dtype:
    """The precision that it has; whatever computes in fp32 widens it when loading."""
    return tensor.dtype


def as_float32(name: str, tensor: Tensor) -> torch.dtype:
    """fp32 for every number; flags and counters stay what they are."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


# file -> the dtype of each of its tensors; a file that is not named here is fp32
DTYPES: dict[str, DtypeRule] = {LM_TENSORS: lm_dtype, CODEC_TENSORS: as_shipped}


def dtype_rule(file: str) -> DtypeRule:
    """The dtype that the tensors of a converted checkpoint's `file` have."""
    return DTYPES.get(file, as_float32)


def write_demucs(path: Path, target: Target) -> None:
    """Demucs in the form of its authors' hub repository."""
    demucs = open_demucs(path)
    target.tensors(DEMUCS_TENSORS, demucs.state, demucs.metadata)


def write_text_encoder(saved: Saved, name: str, target: Target) -> None:
    """T5's encoder, without the decoder that upstream ships too, and its tokenizer."""
    tied = "encoder.embed_tokens.weight" if "shared.weight" in saved.state else None
    state = {
        key: value
        for key, value in saved.state.items()
        if key != tied and key.startswith(("shared.", "encoder."))
    }
    if not state:
        raise WeightsError(f"{saved.folder} holds no text encoder.")
    _write_saved(saved.config, state, local_name(name), target)
    for file in TOKENIZER_FILES:
        target.copy(f"{local_name(name)}/{file}", saved.folder / file)


def write_codec(codec: EncodecFiles, target: Target) -> dict[str, Any] | None:
    """EnCodec; returns the facts of audiocraft's, None for a folder of transformers'."""
    if codec.library == TRANSFORMERS:
        _write_saved(codec.config, codec.state, ENCODEC_FOLDER, target)
        return None
    target.tensors(CODEC_TENSORS, codec.state)
    quantizer = str(codec.config["encodec"]["quantizer"])
    return sections(codec.config, (*CODEC_SECTIONS, quantizer))


def lm_facts(config: DictConfig) -> dict[str, Any]:
    """What inference reads of the language model's configuration."""
    facts = sections(config, LM_SECTIONS)
    facts["dataset"] = {"segment_duration": config.dataset.segment_duration}
    return facts


def sections(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Sections of a configuration, those that there are, with references resolved."""
    try:
        # A section of its own would not find what it refers to elsewhere.
        found = {name: config[name] for name in names if name in config}
        return {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in found.items()
        }
    except OmegaConfBaseException as exc:
        raise WeightsError(f"The configuration cannot be read: {exc}") from exc


def read_sources(folder: Path) -> list[Source]:
    """Where the files came from: what `pull` wrote, or just the folder."""
    path = folder / SOURCES_FILE
    if not path.exists():
        return [Source(folder.resolve().name, UNKNOWN_LICENCE)]
    with damage_reported(path):
        return [Source(**source) for source in json.loads(path.read_text())]


def _write_saved(
    config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, target: Target
) -> None:
    # transformers would load in the dtype that the configuration names, whatever the file's.
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    target.text(f"{name}/{CONFIG_FILE}", json.dumps({**config, "dtype": "float32"}, indent=2))
    target.tensors(f"{name}/model.safetensors", state)
