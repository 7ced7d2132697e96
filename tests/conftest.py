"""Fixtures for all tests. The expensive ones exist once per pytest-xdist worker."""

from contextlib import ExitStack

import pytest
import sounds
import torch
from cog_server import cog_server
from storage import fault_proxy, storage_server

from musicgen.pipeline import MusicGen
from musicgen.serving.upload import _BACK_OFF
from training import configs

# The test models are so small that a second thread makes them slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """kind -> folder of a small random checkpoint in the upstream format. Copy it to change it."""
    import tiny_checkpoints  # imports audiocraft, which takes 6 s

    root = tmp_path_factory.mktemp("weights")
    for kind in configs.KINDS:
        tiny_checkpoints.write_checkpoint(root / kind, kind)
    return {kind: root / kind for kind in configs.KINDS}


@pytest.fixture(scope="session")
def models(checkpoints):
    """kind -> that checkpoint on the CPU, ready to generate."""
    return {kind: MusicGen.load(folder, "cpu") for kind, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def start_server(checkpoints, tmp_path_factory):
    """(predictor, checkpoint, **environment) -> a running Cog server; stopped after the module."""
    with ExitStack() as stack:

        def start(predictor, checkpoint=checkpoints["stereo-melody"], **environment):
            folder = tmp_path_factory.mktemp(predictor)
            server = cog_server(folder, checkpoint, predictor, **environment)
            return stack.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def predict_server(checkpoints, tmp_path_factory):
    with cog_server(tmp_path_factory.mktemp("shared"), checkpoints["stereo-melody"]) as server:
        yield server


@pytest.fixture(scope="session")
def songstarter_server(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with cog_server(folder, checkpoints["stereo-melody"], "songstarter") as server:
        yield server


@pytest.fixture(scope="session")
def tune(tmp_path_factory):
    """A wav file with 3 s of melody at 32 kHz."""
    path = tmp_path_factory.mktemp("tune") / "tune.wav"
    return sounds.write(path, sounds.melody(3.0, 32000), 32000)


@pytest.fixture(scope="module")
def storage_url():
    """The URL of a storage server with the bucket `songs`."""
    with storage_server("songs") as url:
        yield url


@pytest.fixture
def proxy(storage_url, monkeypatch):
    """A proxy in front of the storage server that all uploads use and that injects faults."""
    with fault_proxy(storage_url) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        monkeypatch.setitem(_BACK_OFF, "initial", 0.05)
        yield proxy
