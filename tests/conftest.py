"""Fixtures for all tests. The expensive ones exist once per pytest-xdist worker."""

import gc
import os
import signal
from contextlib import ExitStack, contextmanager, suppress

# Idle OpenMP threads sleep. Otherwise the threads that one test needs (numba's, in test_kernels.py)
# spin until the end, and every later test in the process takes several times as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import httpx
import parallel
import plain_http
import pytest
import sounds
from cog_client import CogClient
from cog_server import cog_server
from gate import until
from storage import fault_proxy, storage_server

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands import server
from musicgen.serving.upload import _BACK_OFF
from training import configs

# These files and folders take longest. They begin first, so that no worker is left alone with one
# at the end.
LONGEST = (
    *("page", "test_cluster", "test_abuse", "test_kernels", "test_http_callers"),
    *("test_audio_files", "test_docs_commands", "test_http_provenance", "test_image"),
)
# Tests with one of these fixtures are marked as slow.
SLOW_FIXTURES = {"start_server", "predict_server", "songstarter_server", "demo_server"}
# Marker -> the files and folders whose tests have it.
MARKED_PLACES = {
    "slow": {
        *("benchmarks", "cluster", "deploy", "page", "reliability"),
        *("test_cli", "test_http", "test_http_callers", "test_http_inputs", "test_http_properties"),
        *("test_http_provenance", "test_docs_commands", "test_end_of_process", "test_public_api"),
        "test_audio_files",
    },
    "demo": {"test_demo", "training"},
    "benchmarks": {"benchmarks"},
}

# Until all tests are imported, of which looking for garbage takes a sixth of the time.
gc.disable()

# A shell starts what runs in its background with ctrl-C ignored, and processes pass that on: the
# commands that the tests interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session):
    """Before pytest-xdist starts the workers, write the schema files that servers read."""
    if not hasattr(session.config, "workerinput"):
        for predictor in server.PREDICTORS:
            server.prepare(predictor, "127.0.0.1", 0)


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(parallel.Controller())


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    if hasattr(session.config, "workerinput"):
        parallel.wait_for_first(session.config.workerinput)


def pytest_collection_finish():
    """All modules are imported, in a process that runs tests."""
    import torch

    torch.set_num_threads(1)  # the test models are so small that a second thread makes them slower
    gc.enable()
    gc.freeze()  # the modules are no garbage: do not search them again and again


def pytest_collection_modifyitems(items):
    for item in items:
        fixtures, places = set(item.fixturenames), {item.path.stem, item.path.parent.name}
        markers = {name for name, marked in MARKED_PLACES.items() if places & marked}
        if fixtures & SLOW_FIXTURES:
            markers.add("slow")
        for name in sorted(markers):
            item.add_marker(name)
    items.sort(key=_place)


def _place(item):
    """The place of a test's file or folder in LONGEST."""
    names = {item.path.stem, item.path.parent.name}
    return next((place for place, name in enumerate(LONGEST) if name in names), len(LONGEST))


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
    from musicgen.pipeline import MusicGen  # imports torch, which xdist's main process need not

    return {kind: MusicGen.load(folder, "cpu") for kind, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def start_server(checkpoints, tmp_path_factory):
    """(predictor, checkpoint, **environment) -> a running Cog server; stopped after the module."""
    with ExitStack() as stack:

        def start(predictor, checkpoint=checkpoints["stereo-melody"], **environment):
            folder = tmp_path_factory.mktemp(predictor)
            return stack.enter_context(cog_server(folder, checkpoint, predictor, **environment))

        yield start


def is_ready(url):
    with suppress(httpx.TransportError):
        return plain_http.health(url) == "READY"


@contextmanager
def shared_server(request, predictor):
    """A server for many tests: of a tiny model, or of the demo in a container that runs already."""
    if url := os.environ.get(f"{predictor.upper()}_URL"):
        until(lambda: is_ready(url))
        yield CogClient(url, None, None)
        return
    folder = request.getfixturevalue("tmp_path_factory").mktemp(predictor)
    checkpoint = request.getfixturevalue("checkpoints")["stereo-melody"]
    with cog_server(folder, checkpoint, predictor) as client:
        yield client


@pytest.fixture(scope="session")
def predict_server(request):
    with shared_server(request, "predict") as client:
        yield client


@pytest.fixture(scope="session")
def songstarter_server(request):
    with shared_server(request, "songstarter") as client:
        yield client


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory):
    """A server of the demo model for many tests."""
    with cog_server(tmp_path_factory.mktemp("demo"), DEFAULT, "predict") as client:
        yield client


@pytest.fixture(scope="session")
def served_model():
    """The name of the model that `predict_server` has."""
    return "demo" if "PREDICT_URL" in os.environ else "stereo-melody"


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
