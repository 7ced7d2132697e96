"""A MusicGen as transformers saves it, under audiocraft's names.

`MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration`: one state holds the
language model, EnCodec and the text encoder. A melody model also needs Demucs (htdemucs.th or
htdemucs.safetensors), which must be put into the folder.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen.checkpoints.checkpoint import PROVIDER_PREFIX, Checkpoint
from musicgen.checkpoints.encodec_files import EncodecFiles
from musicgen.checkpoints.limits import check_numbers
from musicgen.checkpoints.reading import damage_reported, read_json
from musicgen.checkpoints.transformers_model import (
    CONFIG_FILE,
    TransformersModel,
    read_config,
    read_transformers_model,
)
from musicgen.errors import WeightsError

MELODY_SETTINGS = "preprocessor_config.json"
DECODER, HEADS = "decoder.model.decoder.", "decoder.lm_heads."
SECONDS = 30  # length that every MusicGen was trained on; not in transformers' configuration

# transformers' class -> whether it is a melody model
CLASSES = {
    "MusicgenForConditionalGeneration": False,
    "MusicgenMelodyForConditionalGeneration": True,
}
# Number -> the largest accepted value, as in architecture.py.
LIMITS = {
    "decoder.ffn_dim": 2**20,
    "decoder.hidden_size": 2**15,
    "decoder.num_attention_heads": 2**10,
    "decoder.num_codebooks": 2**6,
    "decoder.num_hidden_layers": 2**10,
    "decoder.vocab_size": 2**20,
}
# audiocraft's name in a layer -> transformers' names, of which the weights are stacked
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
# Weights of a state that are not read: computed position tables and tied embeddings.
COMPUTED = (f"{DECODER}embed_positions.weights", "text_encoder.encoder.embed_tokens.weight")
# Settings of the melody features in transformers' processor -> MusicGen's value.
MELODY = {"sampling_rate": 32000, "n_fft": 16384, "num_chroma": 12}


class Stacked(Mapping[str, Tensor]):
    """Tensors of `state` under other names; each is one tensor or several concatenated by rows."""

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, list[str]]) -> None:
        self._state, self._names = state, names

    def __getitem__(self, key: str) -> Tensor:
        parts = [self._state[name] for name in self._names[key]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def follows_melodies(folder: Path) -> bool:
    """Whether the MusicGen in `folder` is a melody model; raises WeightsError for other models."""
    name = next(iter(read_config(folder).get("architectures") or []), None)
    if name not in CLASSES:
        raise WeightsError(f"{folder / CONFIG_FILE}: {name} is not one of {', '.join(CLASSES)}.")
    return CLASSES[name]


def open_musicgen(folder: Path) -> tuple[Checkpoint, TransformersModel]:
    """The language model and EnCodec of `folder`, and its text encoder."""
    model = read_transformers_model(folder)
    melody = follows_melodies(folder)
    path = folder / CONFIG_FILE
    with damage_reported(path):
        decoder = model.config["decoder"]
        check_numbers(path, {f"decoder.{key}": decoder.get(key) for key in decoder}, LIMITS)
        names = _names(model.state, decoder, melody)
        _check_mapped(model, names)
        config = OmegaConf.create(_configuration(path, model.config, melody))
        codec = EncodecFiles.from_transformers(_part(model, "audio_encoder"))
        state = Stacked(model.state, names)
        checkpoint = Checkpoint(folder, path, model.weights_file, config, state, lambda: codec)
        checkpoint.check()
        return checkpoint, _part(model, "text_encoder")


def _part(model: TransformersModel, name: str) -> TransformersModel:
    """The model that is saved inside of `model` under `name`."""
    prefix = f"{name}."
    names = {key.removeprefix(prefix): [key] for key in model.state if key.startswith(prefix)}
    state = Stacked(model.state, names)
    return TransformersModel(model.folder, model.config[name], model.weights_file, state)


def decoder_names(layers: int, codebooks: int) -> dict[str, list[str]]:
    """audiocraft's name of a decoder weight -> transformers' names of the weights stacked in it."""
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
    """The names of the decoder's and the projections' weights that are in `state`."""
    names = decoder_names(decoder["num_hidden_layers"], decoder["num_codebooks"])
    for ours, theirs in PROJECTIONS.items():
        for kind in ("weight", "bias"):
            names[f"{PROVIDER_PREFIX}{ours}.output_proj.{kind}"] = [f"{theirs}.{kind}"]
    if melody:
        names = {ours: parts for ours, parts in names.items() if "cross" not in ours}
    return {ours: parts for ours, parts in names.items() if all(x in state for x in parts)}


def _check_mapped(model: TransformersModel, names: Mapping[str, list[str]]) -> None:
    """Raise WeightsError for a weight that would be ignored."""
    mapped = {name for parts in names.values() for name in parts} | {*COMPUTED}
    parts = ("text_encoder.", "audio_encoder.")
    left = [key for key in model.state if key not in mapped and not key.startswith(parts)]
    if left:
        raise WeightsError(
            f"{model.weights_file}: {left[0]} has no place in MusicGen's decoder ({len(left)} such "
            "in all), so this model cannot be converted. Use the repository's state_dict.bin."
        )


def _configuration(path: Path, config: Mapping[str, Any], melody: bool) -> dict[str, Any]:
    """The settings of audiocraft's configuration that inference reads, for the same model."""
    decoder = config["decoder"]
    if decoder.get("scale_embedding"):
        raise WeightsError(f"{path}: scale_embedding=True is not supported; MusicGen has False.")
    books, stereo = decoder["num_codebooks"], decoder.get("audio_channels", 1) == 2
    text_name = config["text_encoder"].get("_name_or_path") or "t5-base"
    conditioners: dict[str, Any] = {"description": {"model": "t5", "t5": {"name": text_name}}}
    if melody:
        conditioners = {"self_wav": _melody(path.parent), **conditioners}
    return {
        "dataset": {"segment_duration": SECONDS},
        "transformer_lm": {
            "dim": decoder["hidden_size"],
            "num_heads": decoder["num_attention_heads"],
            "num_layers": decoder["num_hidden_layers"],
            "hidden_scale": _hidden_scale(decoder["ffn_dim"], decoder["hidden_size"]),
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


def _hidden_scale(ffn_dim: int, dim: int) -> float:
    """The factor that audiocraft's int(hidden_scale * dim) makes `ffn_dim` of."""
    scale: float = ffn_dim / dim
    return scale if int(scale * dim) == ffn_dim else math.nextafter(scale, math.inf)


def _melody(folder: Path) -> dict[str, Any]:
    """The melody conditioner. The processor's settings, if there are any, must be MusicGen's."""
    path = folder / MELODY_SETTINGS
    settings = read_json(path) if path.exists() else {}
    for key, expected in MELODY.items():
        if settings.get(key, expected) != expected:
            raise WeightsError(
                f"{path}: {key}={settings[key]} is not supported; MusicGen has {expected}."
            )
    rate, window = MELODY["sampling_rate"], MELODY["n_fft"]
    spec = {
        "sample_rate": rate,
        "n_chroma": MELODY["num_chroma"],
        "radix2_exp": window.bit_length() - 1,
        "argmax": True,
    }
    return {"model": "chroma_stem", "chroma_stem": spec}
