"""Helpers that change files of a checkpoint and load it as a server does."""

import json

from musicgen.checkpoints.folders import MANIFEST_FILE
from musicgen.pipeline import MusicGen


def load(folder):
    """Load the checkpoint with every model that a server loads at start or on first use."""
    model = MusicGen.load(folder, "cpu")
    model.load_all()
    return model


def believed(folder):
    """Write the current sizes of the files into the manifest, as an attacker would."""
    path = folder / MANIFEST_FILE
    if path.exists():
        manifest = json.loads(path.read_text())
        for name, facts in manifest["files"].items():
            if (folder / name).is_file():
                facts["bytes"] = (folder / name).stat().st_size
        path.write_text(json.dumps(manifest))
