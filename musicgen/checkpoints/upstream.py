"""What a checkpoint in upstream's format consists of, whichever of two formats that is.

audiocraft's: checkpoint.py describes the folder. transformers': `MusicgenForConditionalGeneration`
or `MusicgenMelodyForConditionalGeneration`, one state with everything in it, under other names; a
melody model needs Demucs (htdemucs.th or htdemucs.safetensors) put beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen.checkpoints.checkpoint import (
    PROVIDER_PREFIX,
    Checkpoint,
    open_checkpoint,
)
from musicgen.checkpoints.encodec import EncodecFiles, from_saved
from musicgen.checkpoints.files import damage_reported, read_json
from musicgen.checkpoints.folders import LM_FILE
from musicgen.checkpoints.saved import CONFIG_FILE, Saved, read_config, read_saved
from musicgen.errors import WeightsError

MELODY_SETTINGS = "preprocessor_config.json"
DECODER, HEADS = "decoder.model.decoder.", "decoder.lm_heads."
SECONDS = 30  # what every MusicGen was trained on; transformers' configuration does not say it

# transformers' classes -> whether the model follows melodies
CLASSES = {
    "MusicgenForConditionalGeneration": False,
    "MusicgenMelodyForConditionalGeneration": True,
}
# audiocraft's name in a layer -> transformers' names, stacked
LAYER = {
    "self_attn.in_proj_weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "self_attn.out_proj.weight": ["self_attn.out_proj.weight"],
    "cross_attention.in_proj_weight": [f"encoder_attn.{x}_proj.weight" for x in "qkv"],
    "cross_attention.out_proj.weight": ["encoder_attn.out_proj.weight"],
    "linear1.weight": ["fc1.weight"],
    "linear2.weight": ["fc2.weight"],
    **{
        f"{ours}.{kind}": [f"{theirs}.{kind}"]
        for ours, theirs in {
            "norm1": "self_attn_layer_norm",
            "norm_cross": "encoder_attn_layer_norm",
            "norm2": "final_layer_norm",
        }.items()
        for kind in ("weight", "bias")
    },
}
PROJECTIONS = {"description": "enc_to_dec_proj", "self_wav": "audio_enc_to_dec_proj"}
# Part of a state, but computed: position tables and tied embeddings.
COMPUTED = (f"{DECODER}embed_positions.weights", "text_encoder.encoder.embed_tokens.weight")
# The melody features of transformers' processor that are MusicGen's.
MELODY = {"sampling_rate": 32000, "n_fft": 16384, "num_chroma": 12}


@dataclass(frozen=True)
class Upstream:
    """The language model's checkpoint, and the models that it works with."""

    checkpoint: Checkpoint
    text: Saved
    codec: EncodecFiles


class Stacked(Mapping[str, Tensor]):
    """Tensors of `state` under other names, each made of one or several on top of each other."""

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, list[str]]) -> None:
        self._state, self._names = state, names

    def __getitem__(self, key: str) -> Tensor:
        parts = [self._state[name] for name in self._names[key]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_upstream(folder: Path) -> Upstream:
    """The checkpoint in `folder`. Raises WeightsError for one that is damaged or incomplete."""
    if not (folder / LM_FILE).exists() and (folder / CONFIG_FILE).exists():
        return _open_transformers(folder)
    checkpoint = open_checkpoint(folder)
    if checkpoint.manifest is not None:
        raise WeightsError(f"{folder} is converted already.")
    return Upstream(checkpoint, read_saved(checkpoint.text_folder), checkpoint.codec())


def follows_melodies(folder: Path) -> bool:
    """Whether the MusicGen in transformers' `folder` does; raises WeightsError for other models."""
    name = next(iter(read_config(folder).get("architectures") or []), None)
    if name not in CLASSES:
        raise WeightsError(f"{folder / CONFIG_FILE}: {name} is not one of {', '.join(CLASSES)}.")
    return CLASSES[name]


def _open_transformers(folder: Path) -> Upstream:
    saved = read_saved(folder)
    with damage_reported(folder / CONFIG_FILE):
        return _from_transformers(folder, saved, follows_melodies(folder))


def _from_transformers(folder: Path, saved: Saved, melody: bool) -> Upstream:
    names = _names(saved.state, saved.config["decoder"], melody)
    _check_mapped(folder, saved.state, names)

    def codec() -> EncodecFiles:
        raise WeightsError(f"{folder} cannot be served as it is: scripts/weights convert it first.")

    config = OmegaConf.create(_configuration(folder, saved.config, melody))
    checkpoint = Checkpoint(
        folder, folder / CONFIG_FILE, config, Stacked(saved.state, names), codec
    )
    codec_files = from_saved(_part(saved, "audio_encoder"))
    return Upstream(checkpoint, _part(saved, "text_encoder"), codec_files)


def _part(saved: Saved, prefix: str) -> Saved:
    names = {
        key.removeprefix(f"{prefix}."): [key] for key in saved.state if key.startswith(f"{prefix}.")
    }
    return Saved(saved.folder, saved.config[prefix], Stacked(saved.state, names))


def decoder_names(layers: int, codebooks: int) -> dict[str, list[str]]:
    """audiocraft's names of a decoder -> transformers', of which several are stacked into one."""
    names = {f"emb.{k}.weight": [f"{DECODER}embed_tokens.{k}.weight"] for k in range(codebooks)}
    for i in range(layers):
        for ours, parts in LAYER.items():
            full = [f"{DECODER}layers.{i}.{name}" for name in parts]
            names[f"transformer.layers.{i}.{ours}"] = full
    for kind in ("weight", "bias"):
        names[f"out_norm.{kind}"] = [f"{DECODER}layer_norm.{kind}"]
    return names | {f"linears.{k}.weight": [f"{HEADS}{k}.weight"] for k in range(codebooks)}


def _names(
    state: Mapping[str, Tensor], decoder: Mapping[str, Any], melody: bool
) -> dict[str, list[str]]:
    """The same and the projections', as far as they are in `state`."""
    names = decoder_names(decoder["num_hidden_layers"], decoder["num_codebooks"])
    for ours, theirs in PROJECTIONS.items():
        for kind in ("weight", "bias"):
            names[f"{PROVIDER_PREFIX}{ours}.output_proj.{kind}"] = [f"{theirs}.{kind}"]
    if melody:
        names = {ours: parts for ours, parts in names.items() if "cross" not in ours}
    return {ours: parts for ours, parts in names.items() if all(x in state for x in parts)}


def _check_mapped(
    folder: Path, state: Mapping[str, Tensor], names: Mapping[str, list[str]]
) -> None:
    mapped = {name for parts in names.values() for name in parts}
    left = [
        key
        for key in state
        if key not in mapped
        and key not in COMPUTED
        and not key.startswith(("text_encoder.", "audio_encoder."))
    ]
    if left:
        raise WeightsError(
            f"{folder}: {left[0]} has no place in MusicGen's decoder ({len(left)} such in all), so "
            "this model cannot be converted. Use the repository's state_dict.bin."
        )


def _configuration(folder: Path, config: Mapping[str, Any], melody: bool) -> dict[str, Any]:
    """audiocraft's configuration of the same model, as far as inference reads it."""
    decoder = config["decoder"]
    if decoder.get("scale_embedding"):
        raise WeightsError(f"{folder / CONFIG_FILE}: scale_embedding is not MusicGen's.")
    books, stereo = decoder["num_codebooks"], decoder.get("audio_channels", 1) == 2
    text_name = config["text_encoder"].get("_name_or_path") or "t5-base"
    conditioners: dict[str, Any] = {"description": {"model": "t5", "t5": {"name": text_name}}}
    if melody:
        conditioners = {"self_wav": _melody(folder), **conditioners}
    return {
        "dataset": {"segment_duration": SECONDS},
        "transformer_lm": {
            "dim": decoder["hidden_size"],
            "num_heads": decoder["num_attention_heads"],
            "num_layers": decoder["num_hidden_layers"],
            "hidden_scale": decoder["ffn_dim"] / decoder["hidden_size"],
            "n_q": books,
            "card": decoder["vocab_size"],
            "activation": decoder["activation_function"],
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": [k // 2 if stereo else k for k in range(books)]},
        },
        "conditioners": conditioners,
        "fuser": {
            "cross": [] if melody else ["description"],
            "prepend": ["self_wav", "description"] if melody else [],
        },
        "interleave_stereo_codebooks": {"use": stereo},
    }


def _melody(folder: Path) -> dict[str, Any]:
    """The melody conditioner; the processor's settings, where they are, must be MusicGen's."""
    path = folder / MELODY_SETTINGS
    settings = read_json(path) if path.exists() else {}
    for key, expected in MELODY.items():
        if settings.get(key, expected) != expected:
            raise WeightsError(f"{path}: {key}={settings[key]} is not MusicGen's ({expected}).")
    rate, window = MELODY["sampling_rate"], MELODY["n_fft"]
    spec = {
        "sample_rate": rate,
        "n_chroma": MELODY["num_chroma"],
        "radix2_exp": window.bit_length() - 1,
        "argmax": True,
    }
    return {"model": "chroma_stem", "chroma_stem": spec}
