"""Chooses the checkpoint folder. Imports nothing heavy, so that a command starts at once."""

import os
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
DEFAULT = WEIGHTS / "demo"
# A checkpoint folder holds one of these two files (checkpoint.py describes both formats).
MANIFEST_FILE = "manifest.json"
LM_FILE = "state_dict.bin"


def resolve(weights: str | Path | None = None) -> Path:
    """The checkpoint folder to serve: the argument, else MUSICGEN_WEIGHTS, else the demo.

    `weights` may be the https URL of a tar that holds a folder, as Replicate passes to `setup`. It
    is fetched into weights/ once. Raises WeightsError if that fails.
    """
    chosen = weights or os.environ.get("MUSICGEN_WEIGHTS") or DEFAULT
    if isinstance(chosen, str) and "://" in chosen:
        from musicgen.checkpoints import archive

        return archive.fetch(chosen, WEIGHTS, [MANIFEST_FILE, LM_FILE])
    return Path(chosen).expanduser()
