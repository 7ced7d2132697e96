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
from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.reading import damage_reported, find, local_name
from musicgen.checkpoints.tensors import TensorFile, read_ahead
from musicgen.checkpoints.transformers_model import read_transformers_model
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

NO_SEPARATOR = "none"
PROVIDER_PREFIX = "condition_provider.conditioners."


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
        for conditioner in CONDITIONERS:
            if conditioner in self.config.conditioners:
                self.projection(conditioner)

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
        return self.find(local_name(self.text_name))

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
        return EncodecFiles(AUDIOCRAFT, folder, config, tensors)

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
        with damage_reported(path):
            document = read_yaml(path, package["xp.cfg"])
            config = select_sections(path, document, codec_settings(document))
        return EncodecFiles(AUDIOCRAFT, folder, config, _state(path, package))

    path = find(folder, LM_FILE)
    package = read_package(path)
    with damage_reported(path):
        config = select_sections(path, read_yaml(path, package["xp.cfg"]), LM_SETTINGS)
    return Checkpoint(folder, path, path, config, _state(path, package), codec)


OPENERS = {MANIFEST_FILE: _open_converted, LM_FILE: _open_upstream}


def codec_settings(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections that are read of EnCodec's training configuration."""
    return ("compression_model", "encodec", "seanet", str(document["encodec"]["quantizer"]))


def _transformers_codec(folder: Path, name: object) -> EncodecFiles:
    """EnCodec in a folder of its own below `folder`, as transformers saves it."""
    path = find(folder, local_name(str(name)))
    return EncodecFiles.from_transformers(read_transformers_model(path))


def _state(path: Path, package: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    state = package.get("best_state")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: it has no weights (best_state).")
    return state
