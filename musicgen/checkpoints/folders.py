"""Where checkpoints are. Imports nothing heavy, so that a command starts at once."""

import os
from pathlib import Path

from musicgen import ROOT

WEIGHTS = ROOT / "weights"
DEFAULT = WEIGHTS / "demo"


def chosen(weights: str | Path | None = None) -> Path:
    """The checkpoint folder to serve: the argument, MUSICGEN_WEIGHTS, or the demo."""
    return Path(weights or os.environ.get("MUSICGEN_WEIGHTS") or DEFAULT).expanduser()
