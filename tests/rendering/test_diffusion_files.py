"""The file of Multi-Band Diffusion: upstream's is read, a wrong one named, no code is executed."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from banded import CPU, FRAMES, draw, load, read
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from musicgen.checkpoints.checkpoint import DIFFUSION_FILE, open_checkpoint
from musicgen.errors import WeightsError
from musicgen.rendering import diffusion
from musicgen.rendering.codec import Codec


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


class Planted(dict):
    """A state of a class that the file may not contain."""


@pytest.mark.parametrize("place", ["top", "configuration", "state"])
def test_pickled_code_is_refused_and_not_run(folders, tmp_path, place):
    trace = tmp_path / "trace"
    package = read(folders["text"] / DIFFUSION_FILE)
    if place == "top":
        package["extra"] = Payload(trace)
    elif place == "configuration":
        config = OmegaConf.create({"value": None}, flags={"allow_objects": True})
        config.value = Payload(trace)
        package[0]["cfg"] = config
    else:
        package[0]["model_state"] = Planted(package[0]["model_state"])
    path = tmp_path / DIFFUSION_FILE
    torch.save(package, path)
    if place != "state":
        pickle.loads(pickle.dumps(Payload(trace)))
        assert trace.exists(), "the payload would work"
        trace.unlink()
    codec = Codec(open_checkpoint(folders["text"]), CPU)
    with pytest.raises(WeightsError, match=r"never executed"):
        diffusion.load_bands(path, codec, CPU)
    assert not trace.exists()


def _other_width(package):
    package[1]["cfg"].diffusion_unet.codec_dim = 128


def _other_rate(package):
    package["sample_rate"] = 24000


def _no_band(package):
    del package[3]


def _no_parameter(package):
    package[2]["model_state"].popitem()


def _no_schedule(package):
    del package[0]["cfg"]["schedule"]


@pytest.mark.parametrize(
    "spoil", [_other_width, _other_rate, _no_band, _no_parameter, _no_schedule]
)
def test_a_file_that_does_not_fit_is_reported_by_name(folders, tmp_path, spoil):
    package = read(folders["text"] / DIFFUSION_FILE)
    spoil(package)
    path = tmp_path / DIFFUSION_FILE
    torch.save(package, path)
    codec = Codec(open_checkpoint(folders["text"]), CPU)
    with pytest.raises(WeightsError, match=DIFFUSION_FILE):
        diffusion.load_bands(path, codec, CPU)


def test_the_allow_list_has_only_names_that_a_file_needs(folders):
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(folders["text"] / DIFFUSION_FILE)
    allowed = {
        item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__name__}"
        for item in diffusion.CONFIGURATION
    }
    assert allowed == set(needed)


def test_configurations_that_hydra_composed_are_read(folders, mono, tmp_path):
    """Upstream's are composed by hydra, which leaves a resolved date in the root's cache."""
    package = read(folders["text"] / DIFFUSION_FILE)
    for index in range(package["n_bands"]):
        name = f"band-{index}"
        OmegaConf.save(package[index]["cfg"], tmp_path / f"{name}.yaml")
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            config = compose(name, return_hydra_config=True)
        assert "outputs" in config.hydra.run.dir
        with open_dict(config):
            del config["hydra"]
        assert config._metadata.resolver_cache["now"]
        package[index]["cfg"] = config
    folder = shutil.copytree(folders["text"], tmp_path / "composed")
    torch.save(package, folder / DIFFUSION_FILE)
    codes = draw(1, 4, FRAMES)
    assert torch.equal(load(folder).decode(codes, [3]), mono.decode(codes, [3]))
