"""Opens a checkpoint folder: reads its files without executing code, and states the model's facts.

A converted folder, written by convert.py and recognized by its manifest:

    manifest.json           the model's facts; size and sha256 of every other file
    lm.safetensors          the language model in fp16, its projections in fp32
    codec.safetensors       EnCodec, or the folder encodec_32khz/
    t5-base/                the text encoder: T5's encoder and tokenizer, as transformers saves them
    htdemucs.safetensors    melody models that separate: Demucs, in the format of its hub repository
    mbd_musicgen_32khz.th   Multi-Band Diffusion, optional, in upstream's format

A folder in audiocraft's upstream format:

    state_dict.bin               the language model: `xp.cfg` (YAML text) and `best_state`
    compression_state_dict.bin   EnCodec: the same two, or `pretrained`, the name of a folder below
    t5-base/                     the text encoder that xp.cfg names, as transformers saves it
    htdemucs.th                  melody models that separate: Demucs as its authors serialize it, or
                                 htdemucs.safetensors
    mbd_musicgen_32khz.th        Multi-Band Diffusion, optional: cfg and states of each band
    encodec_32khz/               if `pretrained` names it: EnCodec as transformers saves it
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from musicgen.checkpoints import folders
from musicgen.checkpoints.architecture import CONDITIONERS, LM_SETTINGS, check_architecture
from musicgen.checkpoints.configuration import read_yaml, select_sections
from musicgen.checkpoints.encodec_files import AUDIOCRAFT, EncodecFiles
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import Manifest, read_manifest
from musicgen.checkpoints.pickles import EXPORT, read_package
from musicgen.checkpoints.reading import damage_reported, find, local_name, read_json
from musicgen.checkpoints.tensors import TensorFile, read_ahead
from musicgen.checkpoints.transformers_model import (
    TransformersModel,
    read_config,
    read_transformers_model,
)
from musicgen.decoder.lm import LM
from musicgen.decoder.weights import LMConfig, below
from musicgen.errors import WeightsError

CODEC_FILE = "compression_state_dict.bin"
DEMUCS_FILE = "htdemucs.th"
DIFFUSION_FILE = "mbd_musicgen_32khz.th"
LM_TENSORS = "lm.safetensors"
CODEC_TENSORS = "codec.safetensors"
DEMUCS_TENSORS = "htdemucs.safetensors"
ENCODEC_FOLDER = "encodec_32khz"  # EnCodec of a converted checkpoint, where transformers saved it

ADAPTER_FILE = "adapter_config.json"
NO_SEPARATOR = "none"
PROVIDER_PREFIX = "condition_provider.conditioners."
TUNED_PREFIX = f"{PROVIDER_PREFIX}description.t5."  # a text encoder trained with the language model
COMPUTED_PREFIX = f"{PROVIDER_PREFIX}self_wav.chroma."  # buffers that are computed, not read


@dataclass(frozen=True)
class Checkpoint:
    """The facts and weights of one checkpoint folder.

    `config` was read from `config_file` and `state` from `lm_file`; an error names the one that
    caused it. Tensors stay memory-mapped until something copies them. `manifest` is None for a
    folder that was not converted.
    """

    folder: Path
    config_file: Path
    lm_file: Path
    config: DictConfig
    state: Mapping[str, Tensor]
    codec: Callable[[], EncodecFiles]
    manifest: Manifest | None = None

    def check(self) -> None:
        """Raise WeightsError, naming file and setting, for a model that this server cannot run."""
        with damage_reported(self.config_file):
            check_architecture(self.config_file, self.config)
            _ = self.lm, self.text_name, self.separates
        for conditioner in self._conditioners:
            self.projection(conditioner)
        self._check_unread()

    def _check_unread(self) -> None:
        """Raise WeightsError for a conditioner's weight that would be ignored."""
        read = {f"{PROVIDER_PREFIX}{name}.output_proj." for name in self._conditioners}
        if self.has_tuned_text_encoder:
            read.add(TUNED_PREFIX)
        if self.chroma is not None:
            read.add(COMPUTED_PREFIX)
        for key in self.state:
            if "lora" in key.lower():
                raise WeightsError(
                    f"{self.lm_file}: {key} is part of a LoRA adapter. Merge the adapter into its "
                    "model before you save it."
                )
            if key.startswith("condition_provider.") and not key.startswith(tuple(read)):
                raise WeightsError(
                    f"{self.lm_file}: {key} would be ignored: its configuration has no part that "
                    f"reads it (conditioners.description.t5.finetune={self.tunes_text_encoder})."
                )
        if self.tunes_text_encoder and not self.has_tuned_text_encoder:
            raise WeightsError(
                f"{self.lm_file}: conditioners.description.t5.finetune=True, but it has no weights "
                f"{TUNED_PREFIX}*; it is incomplete."
            )

    @property
    def _conditioners(self) -> list[str]:
        return [name for name in CONDITIONERS if name in self.config.conditioners]

    @property
    def name(self) -> str:
        return self.manifest.name if self.manifest else self.folder.resolve().name

    @cached_property
    def lm(self) -> LMConfig:
        """The shape of the decoder."""
        arguments = self.config.transformer_lm
        delays = self.config.codebooks_pattern.get("delay", {}).get("delays")
        return LMConfig(
            dim=arguments.dim,
            num_heads=arguments.num_heads,
            num_layers=arguments.num_layers,
            ffn_dim=int(arguments.hidden_scale * arguments.dim),  # truncated, as in audiocraft
            n_q=arguments.n_q,
            card=arguments.card,
            delays=tuple(delays or range(arguments.n_q)),
            cross_attention=bool(self.config.fuser.cross),
        )

    def read_ahead(self) -> None:
        """Start to read the language model from the disk, so that `load_lm` finds it in memory."""
        read_ahead(self.lm_file)

    def load_lm(
        self, device: torch.device, dtype: torch.dtype, threads: int = 1, fast: bool = False
    ) -> LM:
        """The decoder on `device`; raises WeightsError naming the file if weights do not fit.

        On a CPU it may use `threads` threads, and `fast` rounds weights, keys and values.
        """
        with damage_reported(self.lm_file):
            try:
                return LM.from_audiocraft(
                    self.lm, self.state, device=device, dtype=dtype, threads=threads, fast=fast
                )
            except ValueError as exc:
                raise WeightsError(f"{self.lm_file}: {exc}") from exc

    @property
    def max_duration(self) -> float:
        """Seconds of the longest window: the length that the model was trained on."""
        return float(self.config.dataset.segment_duration)

    @property
    def stereo(self) -> bool:
        """Whether the codes of the left and right channel are interleaved."""
        return bool(self.config.get("interleave_stereo_codebooks", {}).get("use", False))

    @property
    def chroma(self) -> dict[str, Any] | None:
        """Arguments of the melody conditioner; None for a model without one."""
        spec = self.config.conditioners.get("self_wav")
        return None if spec is None else dict(spec.chroma_stem)

    @property
    def separates(self) -> bool:
        """Whether Demucs removes drums and bass from a melody, as upstream's models expect.

        `separator: none` in chroma_stem states that the model was trained on unseparated melodies.
        """
        return self.chroma is not None and self.chroma.get("separator") != NO_SEPARATOR

    @property
    def text_name(self) -> str:
        """The name of the text encoder in the configuration: t5-base."""
        return str(self.config.conditioners.description.t5.name)

    @property
    def text_folder(self) -> Path:
        """The folder of the text encoder and its tokenizer."""
        return self.find(local_name(self.text_name))

    @property
    def tunes_text_encoder(self) -> bool:
        """Whether the text encoder was trained with the language model."""
        return bool(self.config.conditioners.description.t5.get("finetune", False))

    @cached_property
    def has_tuned_text_encoder(self) -> bool:
        """Whether the state has the weights of a text encoder that was trained with it."""
        return self.tunes_text_encoder and any(key.startswith(TUNED_PREFIX) for key in self.state)

    def text_encoder(self) -> TransformersModel:
        """The text encoder: that of `text_folder`, with the weights of this state if it has any."""
        if not self.has_tuned_text_encoder:
            return read_transformers_model(self.text_folder)
        tuned = below(self.state, TUNED_PREFIX)
        return TransformersModel(
            self.text_folder, read_config(self.text_folder), self.lm_file, tuned
        )

    @property
    def codec_file(self) -> Path:
        """The file of EnCodec, or its folder if transformers saved it."""
        if self.manifest is None:
            return self.folder / CODEC_FILE
        return self.folder / (CODEC_TENSORS if self.manifest.codec else ENCODEC_FOLDER)

    @property
    def demucs_file(self) -> Path:
        """The file of Demucs. If both formats are there, the one that is not a pickle."""
        safe = self.folder / DEMUCS_TENSORS
        return safe if safe.exists() else self.find(DEMUCS_FILE)

    @property
    def diffusion_file(self) -> Path:
        return self.find(DIFFUSION_FILE)

    @property
    def has_diffusion(self) -> bool:
        """Whether the optional diffusion weights are there."""
        return (self.folder / DIFFUSION_FILE).exists()

    def projection(self, conditioner: str) -> dict[str, Tensor]:
        """State of `conditioner`'s output projection: weight [dim, in] and bias [dim]."""
        prefix = f"{PROVIDER_PREFIX}{conditioner}.output_proj."
        found = below(self.state, prefix)
        if found.keys() != {"weight", "bias"}:
            raise WeightsError(
                f"{self.lm_file}: it does not have the weights {prefix}weight and .bias; it is "
                "incomplete."
            )
        return found

    def find(self, name: str) -> Path:
        """The path of a file of this folder; raises WeightsError if it does not exist."""
        return find(self.folder, name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its language model memory-mapped, its configuration checked.

    Of a converted folder, the size of every file and the headers of the safetensors are checked,
    not the hashes: those would double the loading time (`scripts/weights verify` checks them).
    """
    if not folder.is_dir():
        raise WeightsError(
            f"The checkpoint folder {folder} does not exist. Fetch one (scripts/weights pull), or "
            f"set MUSICGEN_WEIGHTS to a folder with weights, such as the demo's: {folders.DEFAULT}"
        )
    for name, opener in OPENERS.items():
        if (folder / name).exists():
            checkpoint = opener(folder)
            checkpoint.check()
            return checkpoint
    refuse_adapter(folder)
    raise WeightsError(
        f"{folder} is not a MusicGen checkpoint: it has neither {' nor '.join(OPENERS)}. If "
        "pulling or converting into it was interrupted, run that again."
    )


def _open_converted(folder: Path) -> Checkpoint:
    manifest_file = folder / MANIFEST_FILE
    manifest = read_manifest(folder)
    manifest.check_sizes(folder)

    def codec() -> EncodecFiles:
        if manifest.codec is None:
            return _transformers_codec(folder, manifest.codec_folder)
        tensors = TensorFile(find(folder, CODEC_TENSORS))
        with damage_reported(manifest_file):
            settings = [*manifest.codec]
            config = select_sections(manifest_file, manifest.codec, settings, references=False)
        return EncodecFiles(AUDIOCRAFT, manifest_file, config, tensors)

    path = find(folder, LM_TENSORS)
    with damage_reported(manifest_file):
        config = select_sections(manifest_file, manifest.lm, LM_SETTINGS, references=False)
    return Checkpoint(folder, manifest_file, path, config, TensorFile(path), codec, manifest)


def _open_upstream(folder: Path) -> Checkpoint:
    def codec() -> EncodecFiles:
        path = find(folder, CODEC_FILE)
        package = read_package(path)
        if "pretrained" in package:
            return _transformers_codec(folder, package["pretrained"])
        state = _state(path, package)
        with damage_reported(path):
            document = read_yaml(path, package["xp.cfg"])
            config = select_sections(path, document, codec_settings(document))
        return EncodecFiles(AUDIOCRAFT, path, config, state)

    path = find(folder, LM_FILE)
    package = read_package(path)
    state = _state(path, package)
    with damage_reported(path):
        config = select_sections(path, read_yaml(path, package["xp.cfg"]), LM_SETTINGS)
    return Checkpoint(folder, path, path, config, state, codec)


def refuse_adapter(folder: Path) -> None:
    """Raise WeightsError if `folder` holds a LoRA adapter, as the PEFT library saves it."""
    if not (folder / ADAPTER_FILE).exists():
        return
    base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    raise WeightsError(
        f"{folder} is a LoRA adapter of {base}, not a whole model. Merge it: PeftModel."
        f"from_pretrained(base_model, {str(folder)!r}).merge_and_unload().save_pretrained(MERGED). "
        "Then run scripts/weights convert MERGED DIR."
    )


OPENERS = {MANIFEST_FILE: _open_converted, LM_FILE: _open_upstream}


def codec_settings(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections that are read of EnCodec's training configuration."""
    return ("compression_model", "encodec", "seanet", str(document["encodec"]["quantizer"]))


def _transformers_codec(folder: Path, name: object) -> EncodecFiles:
    """EnCodec in a folder of its own below `folder`, as transformers saves it."""
    path = find(folder, local_name(str(name)))
    return EncodecFiles.from_transformers(read_transformers_model(path))


def _state(path: Path, package: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    state: Any = package.get("best_state")
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not state or not tensors:
        training = isinstance(state, Mapping) or {"state_dict", "optimizer"} & package.keys()
        hint = f" {EXPORT}" if training else ""
        raise WeightsError(f"{path}: it has no weights (best_state).{hint}")
    found: Mapping[str, Tensor] = state
    return found
