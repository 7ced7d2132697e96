"""What all tests share."""

from contextlib import ExitStack

import pytest
import tiny_checkpoints
import torch
from cog_client import CogClient
from storage import fault_proxy, storage_server

from musicgen.commands import server
from musicgen.pipeline import MusicGen
from musicgen.serving.upload import _BACK_OFF
from training import configs

# The models here are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """kind -> folder of a small random checkpoint in the upstream format."""
    root = tmp_path_factory.mktemp("weights")
    for kind in configs.KINDS:
        tiny_checkpoints.write_checkpoint(root / kind, kind)
    return {kind: root / kind for kind in configs.KINDS}


@pytest.fixture(scope="session")
def models(checkpoints):
    """kind -> that checkpoint on the CPU, ready to generate."""
    return {kind: MusicGen.load(folder, "cpu") for kind, folder in checkpoints.items()}


@pytest.fixture(scope="session")
def start_server(checkpoints, tmp_path_factory):
    """(predictor, checkpoint, **environment) -> a running Cog server; stopped after the tests."""
    with ExitStack() as stack:

        def start(predictor, checkpoint=checkpoints["stereo-melody"], **environment):
            folder = tmp_path_factory.mktemp(predictor)
            log = stack.enter_context((folder / "server.log").open("w"))
            (folder / "tmp").mkdir()
            environment |= {
                "MUSICGEN_WEIGHTS": str(checkpoint),
                "MUSICGEN_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(folder / "tmp"),
            }
            url = stack.enter_context(server.running(predictor, log, environment))
            return CogClient(url, folder / "tmp", folder / "server.log")

        yield start


@pytest.fixture(scope="session")
def predict_server(start_server):
    return start_server("predict")


@pytest.fixture(scope="session")
def songstarter_server(start_server):
    return start_server("songstarter")


@pytest.fixture(scope="module")
def storage_url():
    """The URL of a storage server with the bucket `songs`."""
    with storage_server("songs") as url:
        yield url


@pytest.fixture
def proxy(storage_url, monkeypatch):
    """What uploads go through: a proxy in front of that server, that breaks on demand."""
    with fault_proxy(storage_url) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        monkeypatch.setitem(_BACK_OFF, "initial", 0.05)
        yield proxy
