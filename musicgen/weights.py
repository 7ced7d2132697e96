"""Finds a checkpoint folder, reads its files without executing what they hold, states its facts.

A folder in audiocraft's upstream format:

    state_dict.bin               the language model: `xp.cfg` (YAML text) and `best_state`
    compression_state_dict.bin   EnCodec: the same two, or `pretrained`, the name of a folder below
    t5-base/                     the text encoder that xp.cfg names, as transformers saves it
    htdemucs.th                  melody models only: Demucs as its authors serialize it
    mbd_musicgen_32khz.th        Multi-Band Diffusion, optional: each band's cfg and states
    encodec_32khz/               if `pretrained` names it: EnCodec as transformers saves it
"""

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from musicgen.errors import WeightsError
from musicgen.lm import LMConfig

ROOT = Path(__file__).resolve().parent.parent / "weights"
DEFAULT = ROOT / "tiny-stereo-melody"

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
DEMUCS_FILE = "htdemucs.th"
DIFFUSION_FILE = "mbd_musicgen_32khz.th"

# What every MusicGen checkpoint has in common; anything else needs another decoder.
ARCHITECTURE = {
    "activation": "gelu",
    "bias_attn": False,
    "bias_ff": False,
    "bias_proj": False,
    "causal": True,
    "kv_repeat": 1,
    "layer_scale": None,
    "norm": "layer_norm",
    "norm_first": True,
    "past_context": None,
    "positional_embedding": "sin",
    "qk_layer_norm": False,
    "qk_layer_norm_cross": False,
}
CONDITIONERS = {"description": "t5", "self_wav": "chroma_stem"}
PROVIDER_PREFIX = "condition_provider.conditioners."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder. Tensors stay memory-mapped until something copies them."""

    folder: Path
    config: DictConfig
    state: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def lm(self) -> LMConfig:
        """Shape of the decoder; raises WeightsError for one that is not MusicGen's."""
        arguments = self.config.transformer_lm
        for key, expected in ARCHITECTURE.items():
            if arguments.get(key, expected) != expected:
                raise WeightsError(
                    f"{self.folder / LM_FILE}: transformer_lm.{key}={arguments[key]!r} is not "
                    f"MusicGen's ({expected!r}); this server cannot decode it."
                )
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
    def text_folder(self) -> Path:
        """The text encoder's folder."""
        return self._part(str(self.config.conditioners.description.t5.name))

    @property
    def demucs_file(self) -> Path:
        return self.find(DEMUCS_FILE)

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
            raise WeightsError(f"{self.folder / LM_FILE}: holds no {prefix}*; it is incomplete.")
        return found

    def codec(self) -> tuple[DictConfig, Mapping[str, Tensor]] | Path:
        """EnCodec: its configuration and state, or the folder that transformers saved it to."""
        package = read_package(self.find(CODEC_FILE))
        if "pretrained" in package:
            return self._part(str(package["pretrained"]))
        return _configuration(self.folder / CODEC_FILE, package), _state(package)

    def find(self, name: str) -> Path:
        """A file of this folder; raises WeightsError, with what to do, if it is not there."""
        path = self.folder / name
        if not path.exists():
            raise WeightsError(
                f"{path} is missing. Fetch a whole checkpoint, or point MUSICGEN_WEIGHTS at one "
                "that has this file (weights/README.md lists what a folder holds)."
            )
        return path

    def _part(self, name: str) -> Path:
        """Folder of a model that a configuration names: `facebook/encodec_32khz` -> its last part.

        Only that last part is used, so a configuration cannot point outside of the checkpoint.
        """
        return self.find(Path(name).name)


def resolve(weights: str | Path | None = None) -> Path:
    """The checkpoint folder to serve: the argument, MUSICGEN_WEIGHTS, or the small one."""
    return Path(weights or os.environ.get("MUSICGEN_WEIGHTS") or DEFAULT).expanduser()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's language-model file (memory-mapped) and check what kind it is."""
    if not folder.is_dir():
        raise WeightsError(
            f"The checkpoint folder {folder} does not exist. Set MUSICGEN_WEIGHTS to a folder with "
            f"{LM_FILE}, or make a small untrained one: scripts/weights tiny {folder} --kind text"
        )
    path = folder / LM_FILE
    if not path.exists():
        raise WeightsError(f"{path} is missing; {folder} is not a MusicGen checkpoint.")
    package = read_package(path)
    config = _configuration(path, package)
    for name, spec in config.conditioners.items():
        if name != "args" and CONDITIONERS.get(str(name)) != spec.model:
            raise WeightsError(f"{path}: conditioner {name} ({spec.model}) is not supported.")
    return Checkpoint(folder, config, _state(package))


def read_package(path: Path, allowed: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """A dictionary saved by torch.save, memory-mapped, without executing pickled code.

    `allowed` are the classes and functions that may stand in it besides tensors and plain data.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise WeightsError(
            f"{path} cannot be loaded as tensors and plain data ({reason}). It is damaged, or it "
            "holds code, which is never executed; fetch it again."
        ) from exc
    if not isinstance(package, dict):
        raise WeightsError(f"{path} holds a {type(package).__name__}, not a checkpoint.")
    return package


def _configuration(path: Path, package: Mapping[Any, Any]) -> DictConfig:
    try:
        config = OmegaConf.create(package["xp.cfg"])
    except (KeyError, OmegaConfBaseException) as exc:
        raise WeightsError(f"{path}: no readable configuration (xp.cfg) in it.") from exc
    assert isinstance(config, DictConfig)
    return config


def _state(package: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    state: Mapping[str, Tensor] = package["best_state"]
    return state
