"""Chooses the checkpoint folder. Imports nothing heavy, so that a command starts at once."""

import logging
import os
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
DEFAULT = WEIGHTS / "demo"
# cog.yaml names this folder. An image that was built without it serves the demo.
IMAGE_DEFAULT = WEIGHTS / "checkpoint"
# GPU kernels that were compiled in advance. cog.yaml names this folder too.
KERNELS = WEIGHTS / "kernels"
# A checkpoint folder holds one of these two files (checkpoint.py describes both formats).
MANIFEST_FILE = "manifest.json"
LM_FILE = "state_dict.bin"

logger = logging.getLogger(__name__)


def resolve(weights: str | Path | None = None) -> Path:
    """The checkpoint folder to serve: the argument, else MUSICGEN_WEIGHTS, else the demo.

    `weights` may be the https URL of a tar that holds a folder, as Replicate passes to `setup`. It
    is fetched into weights/ once. Raises WeightsError if that fails.

    If MUSICGEN_WEIGHTS is the image's default and that folder is absent, the result is the demo,
    with a warning.
    """
    chosen = weights or _configured() or DEFAULT
    if isinstance(chosen, str) and "://" in chosen:
        from musicgen.checkpoints import archive

        return archive.fetch(chosen, WEIGHTS, [MANIFEST_FILE, LM_FILE])
    return Path(chosen).expanduser()


def _configured() -> str | None:
    """MUSICGEN_WEIGHTS, unless it is the image's default and the image was built without it."""
    configured = os.environ.get("MUSICGEN_WEIGHTS")
    if configured != str(IMAGE_DEFAULT) or IMAGE_DEFAULT.exists():
        return configured
    logger.warning(
        "WARNING: this image contains no checkpoint (%s does not exist). Serving the demo model "
        "instead: 20 MB, synthesized music. For a real model run `scripts/weights pull MODEL "
        "weights/checkpoint` before `cog build`, or mount a checkpoint folder there.",
        IMAGE_DEFAULT,
    )
    return None
