"""The package as a library: its exports; importing and loading it change no global state."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile

import musicgen
from musicgen.checkpoints.folders import DEFAULT

ROOT = Path(__file__).parent.parent
# Process-wide settings that a library must not change.
OBSERVE = """
import os, tempfile, logging, warnings
def observed():
    import torch
    from omegaconf import OmegaConf
    return {
        "environment": dict(os.environ),
        "temporary folder": tempfile.tempdir,
        "threads": torch.get_num_threads(),
        "resolver": OmegaConf.has_resolver("oc.env"),
        "logging": logging.getLogger().level,
        "handlers": len(logging.getLogger().handlers),
        "warnings": list(warnings.filters),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
    }
"""


def python(code, *arguments, **options):
    """The output of code that runs in a new process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_exists():
    for name in musicgen.__all__:
        assert getattr(musicgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = musicgen.Predictor


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numba", "numpy", "transformers", "audiocraft", "cog"]
    code = f"import musicgen, sys; print(sorted(set(sys.modules) & set({heavy})))"
    assert python(code).strip() == "[]"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A folder with clips, and the names of what making them has changed in the process."""
    code = (
        OBSERVE
        + """
import sys
for name in ("audiocraft", "cog", "transformers", "xformers", "google", "gradio", "ray"):
    sys.modules[name] = None  # importing it raises ImportError
before = observed()
from pathlib import Path
from musicgen import MusicGen, Request, save
model = MusicGen.load(sys.argv[1], "cpu")
folder = Path(sys.argv[2])
[tune] = save(model.generate(Request(prompt="piano", duration=1, seed=1)), folder / "tune.wav")
save(model.generate(Request(input_audio=tune, duration=1, seed=1)), folder / "melody.mp3")
save(model.generate(Request(input_audio=tune, continuation=True, duration=2)), folder / "more.mp3")
after = observed()
print([name for name in before if before[name] != after[name]])
"""
    )
    folder = tmp_path_factory.mktemp("generated")
    return folder, python(code, DEFAULT, folder).strip()


def test_text_melody_and_continuation_need_neither_audiocraft_nor_transformers_nor_cog(generated):
    folder, _ = generated
    seconds = {path.name: soundfile.info(path).duration for path in folder.iterdir()}
    assert seconds == pytest.approx({"tune.wav": 1, "melody.mp3": 1, "more.mp3": 2}, abs=0.1)


def test_loading_generating_and_saving_change_nothing_in_the_process(generated):
    _, changed = generated
    assert changed == "[]"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_runs(example, tmp_path):
    for name in ("weights", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(example)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    made = [path for path in tmp_path.iterdir() if path.suffix in (".mp3", ".wav")]
    assert made
    assert all(soundfile.info(path).duration >= 2 for path in made)


def test_the_wheel_holds_the_package_and_nothing_else():
    """By the rules in pyproject.toml, computed as setuptools does."""
    from setuptools import find_packages

    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(str(ROOT), **find["packages"]["find"])
    assert {name.partition(".")[0] for name in packages} == {"musicgen"}
    folders = {path.parent for path in (ROOT / "musicgen").rglob("*.py")}
    assert len(packages) == len(folders)
