"""Finds a checkpoint folder, reads its files without executing what they hold, states its facts.

A converted folder (convert.py writes it), known by its manifest:

    manifest.json           the model's facts; every other file with its size and sha256
    lm.safetensors          the language model in fp16, its projections in fp32
    codec.safetensors       EnCodec, or the folder encodec_32khz/
    t5-base/                the text encoder: T5's encoder and tokenizer, as transformers saves them
    htdemucs.safetensors    melody models that separate: Demucs as its authors' hub layout has it
    mbd_musicgen_32khz.th   Multi-Band Diffusion, optional, in upstream's form

A folder in audiocraft's upstream format:

    state_dict.bin               the language model: `xp.cfg` (YAML text) and `best_state`
    compression_state_dict.bin   EnCodec: the same two, or `pretrained`, the name of a folder below
    t5-base/                     the text encoder that xp.cfg names, as transformers saves it
    htdemucs.th                  melody models that separate: Demucs as its authors serialize it, or
                                 htdemucs.safetensors
    mbd_musicgen_32khz.th        Multi-Band Diffusion, optional: each band's cfg and states
    encodec_32khz/               if `pretrained` names it: EnCodec as transformers saves it
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from musicgen.checkpoints import folders
from musicgen.checkpoints.architecture import check_architecture
from musicgen.checkpoints.encodec import AUDIOCRAFT, EncodecFiles, transformers_files
from musicgen.checkpoints.files import damage_reported, find, local_name, read_package
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import Manifest, read_manifest
from musicgen.checkpoints.tensors import TensorFile, read_ahead
from musicgen.decoder.lm import LM
from musicgen.decoder.weights import LMConfig
from musicgen.errors import WeightsError

CODEC_FILE = "compression_state_dict.bin"
DEMUCS_FILE = "htdemucs.th"
DIFFUSION_FILE = "mbd_musicgen_32khz.th"
LM_TENSORS = "lm.safetensors"
CODEC_TENSORS = "codec.safetensors"
DEMUCS_TENSORS = "htdemucs.safetensors"
ENCODEC_FOLDER = "encodec_32khz"  # of converted checkpoints, where transformers saved EnCodec

CONDITIONERS = {"description": "t5", "self_wav": "chroma_stem"}
NO_SEPARATOR = "none"
PROVIDER_PREFIX = "condition_provider.conditioners."

# A configuration that somebody else wrote could read a secret and have it shown in a message.
OmegaConf.clear_resolver("oc.env")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder. Tensors stay memory-mapped until something copies them.

    `lm_file` holds `state`; `manifest` is None for a folder in upstream's format.
    """

    folder: Path
    lm_file: Path
    config: DictConfig
    state: Mapping[str, Tensor]
    codec: Callable[[], EncodecFiles]
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        return self.manifest.name if self.manifest else self.folder.resolve().name

    @cached_property
    def lm(self) -> LMConfig:
        """Shape of the decoder; raises WeightsError for one that is not MusicGen's."""
        with damage_reported(self.lm_file):
            return self._lm_config()

    def _lm_config(self) -> LMConfig:
        check_architecture(self.lm_file, self.config)
        arguments = self.config.transformer_lm
        delays = self.config.codebooks_pattern.get("delay", {}).get("delays")
        return LMConfig(
            dim=arguments.dim,
            num_heads=arguments.num_heads,
            num_layers=arguments.num_layers,
            ffn_dim=int(arguments.hidden_scale * arguments.dim),
            n_q=arguments.n_q,
            card=arguments.card,
            delays=tuple(delays or range(arguments.n_q)),
            cross_attention=bool(self.config.fuser.cross),
        )

    def read_ahead(self) -> None:
        """Begin to read the language model from the disk, for `load_lm` to find it in memory."""
        read_ahead(self.lm_file)

    def load_lm(self, device: torch.device, dtype: torch.dtype, threads: int = 1) -> LM:
        """The decoder on `device`; raises WeightsError naming the file if weights do not fit.

        On a CPU it may use `threads` threads.
        """
        with damage_reported(self.lm_file):
            try:
                return LM.from_audiocraft(
                    self.lm, self.state, device=device, dtype=dtype, threads=threads
                )
            except ValueError as exc:
                raise WeightsError(f"{self.lm_file}: {exc}") from exc

    @property
    def max_duration(self) -> float:
        """Seconds of the longest window, the length that the model was trained on."""
        return float(self.config.dataset.segment_duration)

    @property
    def stereo(self) -> bool:
        """Whether left and right codes are interleaved."""
        return bool(self.config.get("interleave_stereo_codebooks", {}).get("use", False))

    @property
    def chroma(self) -> dict[str, Any] | None:
        """Arguments of the melody conditioner, None for a model without one."""
        spec = self.config.conditioners.get("self_wav")
        return None if spec is None else dict(spec.chroma_stem)

    @property
    def separates(self) -> bool:
        """Whether Demucs takes drums and bass out of a melody, as upstream's models want it.

        A configuration with `separator: none` in chroma_stem says that its model was trained on
        melodies as they come.
        """
        return self.chroma is not None and self.chroma.get("separator") != NO_SEPARATOR

    @property
    def text_name(self) -> str:
        """The text encoder, as the configuration names it: t5-base."""
        return str(self.config.conditioners.description.t5.name)

    @property
    def text_folder(self) -> Path:
        return self.find(local_name(self.text_name))

    @property
    def codec_file(self) -> Path:
        """EnCodec: a file, or a folder as transformers saves it."""
        if self.manifest is None:
            return self.folder / CODEC_FILE
        return self.folder / (CODEC_TENSORS if self.manifest.codec else ENCODEC_FOLDER)

    @property
    def demucs_file(self) -> Path:
        """Demucs, in the form without a pickle if both are there."""
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
        found = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        if not found:
            raise WeightsError(f"{self.lm_file}: holds no {prefix}*; it is incomplete.")
        return found

    def find(self, name: str) -> Path:
        """A file of this folder; raises WeightsError, with what to do, if it is not there."""
        return find(self.folder, name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's facts, map its language model into memory, check what kind it is.

    Of a converted folder every file's size and the safetensors' headers are checked, not the
    hashes: those cost as much as the loading (`scripts/weights verify` checks them).
    """
    if not folder.is_dir():
        raise WeightsError(
            f"The checkpoint folder {folder} does not exist. Fetch one (scripts/weights pull), or "
            f"set MUSICGEN_WEIGHTS to a folder with weights, such as the demo's: {folders.DEFAULT}"
        )
    for name, opener in OPENERS.items():
        if (folder / name).exists():
            checkpoint = opener(folder)
            with damage_reported(checkpoint.lm_file):
                _check_conditioners(checkpoint)
                _ = checkpoint.lm, checkpoint.text_name, checkpoint.separates
            return checkpoint
    raise WeightsError(
        f"{folder} is not a MusicGen checkpoint: it has neither {' nor '.join(OPENERS)}. If "
        "pulling or converting into it was interrupted, run that again."
    )


def _open_converted(folder: Path) -> Checkpoint:
    manifest = read_manifest(folder)
    manifest.check_sizes(folder)

    def codec() -> EncodecFiles:
        if manifest.codec is None:
            return transformers_files(find(folder, local_name(str(manifest.codec_folder))))
        tensors = TensorFile(find(folder, CODEC_TENSORS))
        with damage_reported(folder / MANIFEST_FILE):
            return EncodecFiles(AUDIOCRAFT, folder, OmegaConf.create(manifest.codec), tensors)

    path = find(folder, LM_TENSORS)
    with damage_reported(folder / MANIFEST_FILE):
        config = _dictionary(OmegaConf.create(manifest.lm))
    return Checkpoint(folder, path, config, TensorFile(path), codec, manifest)


def _open_upstream(folder: Path) -> Checkpoint:
    def codec() -> EncodecFiles:
        path = find(folder, CODEC_FILE)
        package = read_package(path)
        if "pretrained" in package:
            return transformers_files(find(folder, local_name(str(package["pretrained"]))))
        config, state = _configuration(path, package), _state(path, package)
        return EncodecFiles(AUDIOCRAFT, folder, config, state)

    path = find(folder, LM_FILE)
    package = read_package(path)
    return Checkpoint(folder, path, _configuration(path, package), _state(path, package), codec)


OPENERS = {MANIFEST_FILE: _open_converted, LM_FILE: _open_upstream}


def _check_conditioners(checkpoint: Checkpoint) -> None:
    specs = {str(k): spec for k, spec in checkpoint.config.conditioners.items() if k != "args"}
    wrong = [name for name, spec in specs.items() if CONDITIONERS.get(name) != spec.model]
    if wrong:
        raise WeightsError(
            f"{checkpoint.lm_file}: conditioner {wrong[0]} ({specs[wrong[0]].model}) is not "
            "supported (it is that of musicgen-style); weights/README.md lists the models that are."
        )


def _configuration(path: Path, package: Mapping[Any, Any]) -> DictConfig:
    with damage_reported(path):
        text = package["xp.cfg"]
        # A few lines that refer to each other can stand for more than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.CSafeLoader)):
            raise WeightsError(f"{path}: its configuration (xp.cfg) has aliases, as none does.")
        return _dictionary(OmegaConf.create(text))


def _dictionary(config: Any) -> DictConfig:
    if not isinstance(config, DictConfig):
        raise ValueError("its configuration is no dictionary")
    return config


def _state(path: Path, package: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    state = package.get("best_state")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: no weights (best_state) in it.")
    return state
