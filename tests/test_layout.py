"""Who imports whom, and whether the files that must agree do."""

import ast
import json
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from musicgen.commands import server

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "musicgen"
ROOMS = {
    "bench",
    "checkpoints",
    "cluster",
    "commands",
    "conditioning",
    "decoder",
    "page",
    "rendering",
}

# module or room -> what of this package it may import. A room stands for its modules that have no
# line of their own. `errors` and `request` are for everyone.
FREE = {"errors", "request"}
FACE = {"result_files", "output", "pipeline", "report", "upload", "workers"}
FOLDER = {
    "checkpoints.checkpoint",
    "checkpoints.encodec",
    "checkpoints.files",
    "checkpoints.manifest",
    "checkpoints.saved",
}
LAYERS = {
    "predict": FACE,
    "songstarter": FACE,
    # The way of a request.
    "pipeline": {
        "audio",
        "checkpoints.checkpoint",
        "checkpoints.files",
        "conditioning.conditioner",
        "decoder.clip",
        "decoder.engine",
        "decoder.lm",
        "decoder.loop",
        "decoder.sampling",
        "decoder.state",
        "cancellation",
        "memory",
        "rendering.codec",
        "rendering.diffusion",
        "report",
        "turns",
    },
    "result_files": {"cancellation"},
    "output": {"cancellation", "pipeline", "report"},
    "request": {"decoder.sampling"},
    "turns": {"cancellation"},
    "workers": {"cancellation", "memory", "threads"},
    # Conditions in, codes out.
    "decoder.clip": {"decoder.sampling"},
    "decoder.engine": {
        "decoder.clip",
        "decoder.graph",
        "decoder.job",
        "decoder.kernels",
        "decoder.lm",
        "decoder.pattern",
        "decoder.sampling",
        "decoder.state",
        "decoder.weights",
    },
    "decoder.job": {"decoder.clip", "decoder.lm", "decoder.state"},
    "decoder.state": {"decoder.kernels", "decoder.lm", "decoder.sampling"},
    "decoder.loop": {"decoder.clip", "decoder.engine", "decoder.job"},
    "decoder.lm": {"decoder.kernels", "decoder.weights"},
    "decoder.weights": {"decoder.kernels"},
    "decoder.kernels": {"decoder.kernels", "decoder.sampling"},
    # Text and melody to conditions.
    "conditioning.conditioner": {
        *FOLDER,
        "conditioning.chroma",
        "conditioning.separation",
        "conditioning.t5",
        "conditioning.tokens",
        "decoder.clip",
    },
    "conditioning.separation": {"audio", "checkpoints.demucs"},
    "conditioning.t5": {"checkpoints.saved"},
    "conditioning.tokens": {"checkpoints.files"},
    # Codes to sound.
    "rendering.codec": {*FOLDER, "rendering.encodec"},
    "rendering.diffusion": {*FOLDER, "audiocraft", "rendering.codec", "rendering.windows"},
    # Weights on the disk.
    "checkpoints.folders": {"ROOT"},
    "checkpoints.architecture": set(),
    "checkpoints.checkpoint": {
        "checkpoints.architecture",
        "checkpoints.archive",
        "checkpoints.encodec",
        "checkpoints.files",
        "checkpoints.folders",
        "checkpoints.manifest",
        "checkpoints.tensors",
        "decoder.lm",
        "decoder.weights",
    },
    "checkpoints.encodec": {"checkpoints.saved"},
    "checkpoints.saved": {"checkpoints.files", "checkpoints.tensors"},
    "checkpoints.manifest": {"checkpoints.files"},
    "checkpoints.demucs": {"checkpoints.files", "checkpoints.tensors"},
    "checkpoints.upstream": FOLDER,
    "checkpoints.convert": {
        *FOLDER,
        "checkpoints.demucs",
        "checkpoints.tensors",
        "checkpoints.upstream",
        "decoder.weights",
    },
    "checkpoints.hub": {*FOLDER, "checkpoints.convert", "checkpoints.upstream"},
    "checkpoints.tiny": {"audiocraft", "checkpoints.checkpoint", "checkpoints.tiny_config"},
    # What scripts/ run.
    "commands.cli": {"checkpoints.folders", "commands.server", "commands.weights"},
    "commands.server": {"ROOT", "commands.schema"},
    "commands.verify": {*FOLDER, "checkpoints.convert", "checkpoints.tensors", "pipeline"},
    "commands.weights": {
        "checkpoints.convert",
        "checkpoints.folders",
        "checkpoints.hub",
        "checkpoints.manifest",
        "checkpoints.tiny",
        "checkpoints.tiny_config",
        "commands.verify",
    },
    # A client of the HTTP API: of this package it knows how a server starts and how audio is read.
    "page.__main__": {"commands.cli", "commands.server", "page"},
    "page.analysis": {"audio"},
    "page": {"page"},
    "cluster": {"checkpoints.folders", "cluster", "commands.server"},
    "bench": {
        "ROOT",
        "audiocraft",
        "bench",
        "checkpoints.folders",
        "checkpoints.upstream",
        "commands.server",
        "decoder.clip",
        "decoder.engine",
        "decoder.kernels",
        "decoder.lm",
        "decoder.sampling",
        "decoder.state",
        "decoder.weights",
        "result_files",
    },
}
# library -> the only modules or rooms that may import it
EDGES = {
    "audiocraft": {"audiocraft"},
    "cog": {"predict", "songstarter"},
    "demucs": {"checkpoints.demucs", "checkpoints.tiny", "conditioning.separation"},
    "google": {"upload"},
    "gradio": {"page"},
    "httpx": {"cluster", "page"},
    "httpx2": {"checkpoints.hub"},
    "huggingface_hub": {"checkpoints.hub"},
    "imageio_ffmpeg": {"output"},
    "numba": {"decoder.kernels"},
    "omegaconf": {"checkpoints", "rendering"},
    "PIL": {"page"},
    "psutil": {"bench", "memory"},
    "pydub": {"output"},
    "pyloudnorm": {"page"},
    "ray": {"cluster"},
    "safetensors": {"checkpoints.tensors"},
    "sentencepiece": {"conditioning.tokens"},
    "starlette": {"cluster"},
    "tokenizers": {"conditioning.tokens"},
    "training": set(),  # the package does not know what made its demo
    "transformers": {"bench", "checkpoints.tiny"},
    "triton": {"decoder.kernels"},
    "xformers": set(),
}
# Runs where nothing but torch, numba and triton is installed.
TORCH_ALONE = "decoder"
STANDARD_AND_TORCH = {"numba", "numpy", "torch", "triton"}


def sources():
    """(dotted module, path) of the predictors and of every file of the package."""
    predictors = [(name, ROOT / f"{name}.py") for name in ("predict", "songstarter")]
    return predictors + [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" or path.parent.name == "kernels"
    ]


def line(module, names):
    """The most exact of `names` that `module` is, or is inside of; None if there is none."""
    parts = module.removesuffix(".__init__").split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in prefixes if name in names), None)


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
            # `from musicgen.decoder import lm` imports musicgen.decoder.lm
            room = (ROOT / module.replace(".", "/")).is_dir() and module.startswith("musicgen")
            yield from (f"{module}.{alias.name}" for alias in node.names) if room else [module]


def inside(path):
    """What a file imports of this package, as dotted names below it."""
    return {
        name.removeprefix("musicgen.") for name in imports(path) if name.startswith("musicgen.")
    }


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda value: str(value).split("/")[-1])
def test_imports_follow_the_layers(module, path):
    allowed = FREE | LAYERS.get(line(module, LAYERS), set())
    for name in inside(path):
        assert line(name, allowed), f"{module} imports {name}"
    for name in imports(path):
        top = name.partition(".")[0]
        assert top not in EDGES or line(module, EDGES[top]), f"{module} imports {name}"
        if line(module, {TORCH_ALONE}):
            known = sys.stdlib_module_names | STANDARD_AND_TORCH | {"musicgen"}
            assert top in known, f"{module} imports {name}"


def test_no_import_goes_in_a_circle():
    modules = dict(sources())
    uses = {
        module: {line(name, modules) or f"{name}.__init__" for name in inside(path)} & set(modules)
        for module, path in modules.items()
    }
    assert list(TopologicalSorter(uses).static_order())  # raises CycleError, which names it


def test_rooms_import_no_room_in_a_circle():
    """Modules beside the rooms, such as errors and audio, belong to none."""
    uses = {}
    for module, path in sources():
        room = module.split(".")[0]
        used = {name.split(".")[0] for name in inside(path)}
        uses.setdefault(room, set()).update(used & ROOMS - {room})
    assert list(TopologicalSorter(uses).static_order())
    assert uses["decoder"] == set()


def test_the_table_of_layers_names_real_modules():
    modules = {module.removesuffix(".__init__") for module, _ in sources()} | ROOMS | {"ROOT"}
    assert set(LAYERS) <= modules
    assert set().union(*LAYERS.values()) <= modules
    assert set().union(*EDGES.values()) <= modules


def test_a_room_says_what_it_holds_and_exports_nothing():
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
        assert ast.get_docstring(tree), room
        assert len(tree.body) == 1, room


@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_cog_yaml_agrees_with_the_face_and_the_requirements(predictor):
    name = "cog.yaml" if predictor == "predict" else f"cog.{predictor}.yaml"
    config = yaml.safe_load((ROOT / name).read_text())
    file, _, predictor = config["predict"].partition(":")
    assert (file, predictor) == (f"{predictor}.py", "Predictor")
    assert f"class {predictor}(" in (ROOT / file).read_text()
    assert f"TOKIO_WORKER_THREADS={server.THREADS}" in config["environment"]
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
    pinned = re.compile(r"[a-z0-9-]+(\[[a-z]+\])?==[\w.]+(; sys_platform == \"linux\")?")
    for path in sorted(ROOT.glob("requirements*.txt")):
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert pinned.fullmatch(line), line


def test_the_frame_of_the_schema_holds_no_predictor():
    schemas = json.loads((PACKAGE / "commands" / "openapi.json").read_text())["components"][
        "schemas"
    ]
    assert not {"Input", "Output"} & set(schemas)
