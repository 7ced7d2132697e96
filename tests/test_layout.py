"""Who imports whom, and whether the files that must agree do."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "musicgen"

# module -> what of this package it may import; errors and request are for everyone.
FREE = {"errors", "request"}
FACE = {"output", "pipeline", "report", "upload"}
LAYERS = {
    "predict": FACE,
    "songstarter": FACE,
    "pipeline": {
        "audio",
        "codec",
        "conditioning",
        "diffusion",
        "engine",
        "lm",
        "report",
        "sampling",
        "weights",
    },
    "output": {"pipeline", "report"},
    "engine": {"graph", "kernels", "lm", "pattern", "sampling"},
    "lm": {"kernels"},
    "kernels": {"kernels", "sampling"},
    "conditioning": {"audio", "chroma", "engine", "saved", "separation", "t5", "weights"},
    "separation": {"tensors", "weights"},
    "codec": {"encodec", "saved", "weights"},
    "t5": {"saved"},
    "saved": {"tensors", "weights"},
    "diffusion": {"codec", "weights"},
    "weights": {"archive", "folders", "lm", "manifest", "tensors"},
    "upstream": {"saved", "weights"},
    "convert": {"manifest", "saved", "separation", "tensors", "upstream", "weights"},
    "hub": {"convert", "manifest", "saved", "upstream", "weights"},
    "verify": {"convert", "manifest", "pipeline", "tensors", "weights"},
    "checkpoints": {"convert", "folders", "hub", "manifest", "tiny", "verify"},
    "server": {"schema"},
    "cli": {"checkpoints", "folders", "server"},
    "tiny": {"weights"},
    "bench": {"bench", "engine", "lm", "sampling"},
}
# library -> the only places that may import it
EDGES = {
    "audiocraft": {"bench", "diffusion", "tiny"},
    "cog": {"predict", "songstarter"},
    "demucs": {"conditioning", "separation", "tiny"},
    "google": {"upload"},
    "httpx2": {"hub"},
    "huggingface_hub": {"hub"},
    "imageio_ffmpeg": {"output"},
    "omegaconf": {"codec", "convert", "diffusion", "hub", "tiny", "upstream", "weights"},
    "pydub": {"output"},
    "safetensors": {"tensors"},
    "tokenizers": {"conditioning"},
    "transformers": {"bench", "tiny"},
    "triton": {"kernels"},
}
# Runs where nothing but torch (and triton) is installed.
TORCH_ALONE = {"engine", "graph", "kernels", "lm", "pattern", "sampling"}
STANDARD_AND_TORCH = {"torch", "triton"}


def sources():
    """(module, path) of the faces and of every file of the package; a subpackage is one module."""
    faces = [(name, ROOT / f"{name}.py") for name in ("predict", "songstarter")]
    files = [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    return faces + files


def imports(path):
    """Absolute dotted names of all that a file imports, wherever in it."""
    package = (
        ["musicgen", *path.relative_to(PACKAGE).parent.parts] if PACKAGE in path.parents else []
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "musicgen":
                yield from (f"musicgen.{alias.name}" for alias in node.names)
            else:
                yield module


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda value: str(value).split("/")[-1])
def test_imports_follow_the_layers(module, path):
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "musicgen":
            inner = rest.split(".")[0]
            assert inner in FREE | LAYERS.get(module, set()), f"{module} imports {name}"
        assert module in EDGES.get(top, {module}), f"{module} imports {name}"
        if module in TORCH_ALONE:
            known = sys.stdlib_module_names | STANDARD_AND_TORCH | {"musicgen"}
            assert top in known, f"{module} imports {name}"


def test_the_table_of_layers_names_real_modules():
    modules = {module for module, _ in sources()}
    assert set(LAYERS) <= modules
    assert set().union(*LAYERS.values()) <= modules


@pytest.mark.parametrize("face", ["predict", "songstarter"])
def test_cog_yaml_agrees_with_the_face_and_the_requirements(face):
    name = "cog.yaml" if face == "predict" else f"cog.{face}.yaml"
    config = yaml.safe_load((ROOT / name).read_text())
    file, _, predictor = config["predict"].partition(":")
    assert (file, predictor) == (f"{face}.py", "Predictor")
    assert f"class {predictor}(" in (ROOT / file).read_text()
    build = config["build"]
    assert build["gpu"] is True
    assert build["python_version"] == "3.11"
    requirements = (ROOT / build["python_requirements"]).read_text()
    assert f"cog=={build['sdk_version']}\n" in requirements
    assert "audiocraft" not in re.sub("#.*", "", requirements)
    audiocraft = re.search(r"--no-deps (audiocraft==\S+)", build["run"][0])[1]
    assert f"--no-deps {audiocraft}\n" in (ROOT / "scripts" / "setup").read_text()


def test_both_cog_files_differ_in_image_and_face_alone():
    both = [
        yaml.safe_load((ROOT / name).read_text()) for name in ("cog.yaml", "cog.songstarter.yaml")
    ]
    differ = {key for key in both[0] if both[0][key] != both[1][key]}
    assert set(both[0]) == set(both[1])
    assert differ == {"image", "predict"}


def test_requirements_are_pinned_and_name_no_host():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(; sys_platform == \"linux\")?", line), line


def test_the_frame_of_the_schema_holds_no_predictor():
    schemas = json.loads((PACKAGE / "openapi.json").read_text())["components"]["schemas"]
    assert not {"Input", "Output"} & set(schemas)
