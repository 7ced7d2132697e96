"""What all tests share."""

# audiocraft's own decoder is the tests' oracle and needs the real one, so it must come before
# musicgen, which puts an empty stand-in where there is none.
import xformers  # noqa: F401, I001

import pytest

from musicgen import tiny
from musicgen.pipeline import MusicGen


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """kind -> folder of a small random checkpoint in the upstream format."""
    root = tmp_path_factory.mktemp("weights")
    for kind in tiny.KINDS:
        tiny.write_checkpoint(root / kind, kind)
    return {kind: root / kind for kind in tiny.KINDS}


@pytest.fixture(scope="session")
def models(checkpoints):
    """kind -> that checkpoint on the CPU, ready to generate."""
    return {kind: MusicGen.load(folder, "cpu") for kind, folder in checkpoints.items()}
