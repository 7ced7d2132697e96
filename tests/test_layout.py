"""Files that must agree do: cog.yaml, predictors, requirements, package metadata."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from musicgen.commands import server

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "musicgen"


@pytest.mark.parametrize("predictor", server.PREDICTORS)
def test_cog_yaml_agrees_with_the_predictor_and_the_requirements(predictor):
    name = "cog.yaml" if predictor == "predict" else f"cog.{predictor}.yaml"
    config = yaml.safe_load((ROOT / name).read_text())
    assert config["predict"] == f"{predictor}.py:Predictor"
    assert "class Predictor(" in (ROOT / f"{predictor}.py").read_text()
    assert f"TOKIO_WORKER_THREADS={server.THREADS}" in config["environment"]
    build = config["build"]
    assert build["gpu"] is True
    assert build["python_version"] == "3.11"
    requirements = (ROOT / build["python_requirements"]).read_text()
    assert f"cog=={build['sdk_version']}\n" in requirements
    assert "audiocraft" not in re.sub("#.*", "", requirements)
    audiocraft = re.search(r"--no-deps (audiocraft==\S+)", build["run"][0])[1]
    assert f"--no-deps {audiocraft}\n" in (ROOT / "scripts" / "setup").read_text()


def cog_file(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("predictor", ["songstarter", "streaming"])
def test_the_cog_files_differ_in_image_and_predictor_alone(predictor):
    one, other = cog_file("cog.yaml"), cog_file(f"cog.{predictor}.yaml")
    if predictor == "streaming":
        history = f"COG_STREAM_HISTORY_CAPACITY={server.STREAM_HISTORY}"
        assert other["environment"].pop() == history
    assert set(one) == set(other)
    assert {key for key in one if one[key] != other[key]} == {"image", "predict"}


def test_requirements_are_pinned_and_name_no_host():
    pinned = re.compile(r"[a-z0-9-]+(\[[a-z]+\])?==[\w.]+(; sys_platform == \"linux\")?")
    for path in sorted(ROOT.glob("requirements*.txt")):
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert pinned.fullmatch(line), line


def test_the_common_part_of_the_schema_holds_no_predictor():
    schemas = json.loads((PACKAGE / "commands" / "openapi.json").read_text())["components"][
        "schemas"
    ]
    assert not {"Input", "Output"} & set(schemas)


def requirements(name):
    """Package -> exact version, of one requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]
    return {one.name: str(one.specifier).removeprefix("==") for one in parsed}


def declared():
    """Extra ("" for none) -> the requirements that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in extras.items()}


PINS = {
    "requirements.txt": ("", "server", "diffusion"),
    "requirements-page.txt": ("page",),
    "requirements-cluster.txt": ("cluster",),
    "requirements-dev.txt": ("dev",),
}


@pytest.mark.parametrize("file", PINS)
def test_the_pins_are_versions_that_the_package_declares(file):
    pins = requirements("requirements.txt") | requirements(file)
    wanted = [one for extra in PINS[file] for one in declared()[extra]]
    for one in wanted:
        if one.name != "musicgen-cog":
            assert one.specifier.contains(pins[one.name]), one
    assert set(requirements(file)) <= {one.name for one in wanted}


def test_the_dev_extra_holds_all_others():
    [own] = [one for one in declared()["dev"] if one.name == "musicgen-cog"]
    assert own.extras == set(declared()) - {"", "dev"}
