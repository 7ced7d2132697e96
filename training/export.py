"""Exports the trained models as a checkpoint: in upstream's format, then converted for the server.

Everything is stored in fp16 except the text encoder and the projections of the conditions.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from audiocraft.models.encodec import EncodecModel
from omegaconf import OmegaConf
from torch import nn

from musicgen.checkpoints.checkpoint import CODEC_FILE, PROVIDER_PREFIX
from musicgen.checkpoints.convert import SOURCES_FILE, convert
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import read_manifest
from training import codec, lm, text
from training.configs import N_CHROMA
from training.dataset import CHROMA_WINDOW

LICENCE = "MIT"
WINDOW = f"{PROVIDER_PREFIX}self_wav.chroma.spec.window"  # a buffer that audiocraft saves


def export(encodec: EncodecModel, demo: lm.Demo, folder: Path, name: str = "demo") -> None:
    """Write the checkpoint into `folder`, replacing the checkpoint there."""
    if (folder / MANIFEST_FILE).exists():
        for file in (*read_manifest(folder).files, MANIFEST_FILE):
            (folder / file).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as upstream:
        write_upstream(encodec, demo, Path(upstream))
        convert(Path(upstream), folder, name)


def write_upstream(encodec: EncodecModel, demo: lm.Demo, folder: Path) -> None:
    """Write the checkpoint in audiocraft's format."""
    state = half(demo.lm)
    state[WINDOW] = torch.hann_window(CHROMA_WINDOW)
    assert state[f"{PROVIDER_PREFIX}self_wav.output_proj.weight"].shape[1] == N_CHROMA
    save(folder / LM_FILE, lm.config(), state)
    save(folder / CODEC_FILE, codec.config(), half(encodec))
    text.save(demo.text, folder / lm.TEXT_NAME)
    sources = [{"name": "training", "licence": LICENCE}]
    (folder / SOURCES_FILE).write_text(json.dumps(sources))


def save(path: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    torch.save({"xp.cfg": OmegaConf.to_yaml(OmegaConf.create(config)), "best_state": state}, path)


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state dict with its numbers in fp16."""
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
