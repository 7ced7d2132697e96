"""README and docs/ can be followed to the letter, and agree with the code."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands.server import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "musicgen|tests|docs|scripts|benchmarks|training|deploy|examples"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """The anchors of a page, as GitHub makes them from its titles."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_link_leads_to_a_file_and_a_title(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_every_path_in_code_font_exists(page):
    if page.name == "CHANGELOG.md":  # it names files of earlier versions
        return
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_readmes_python_runs_as_printed(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "demo").symlink_to(DEFAULT)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert Path("soul.mp3").stat().st_size > 100_000


def test_the_python_of_the_page_on_streaming_runs_as_printed(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "streaming.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "demo").symlink_to(DEFAULT)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "streaming.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == "from 0.0 s on: 16000 samples, 2 channels"
    assert Path("soul.mp3").stat().st_size > 200_000


@pytest.mark.parametrize("name", ["test", "push"])
def test_workflows_call_scripts_that_exist(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    scripts = re.findall(r"scripts/\w+", " ".join(step.get("run", "") for step in steps))
    assert scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_contributing_lists_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in (ROOT / "musicgen").glob("*/__init__.py"):
        assert f"`musicgen/{path.parent.name}/`" in text, path.parent.name


def test_every_environment_variable_of_the_code_is_documented():
    """Those that operators set; Cog's, torch's and Google's own are documented elsewhere."""
    files = [*(ROOT / "musicgen").rglob("*.py"), ROOT / "cog.yaml"]
    code = "\n".join(file.read_text() for file in files)
    read = set(re.findall(r"\b((?:MUSICGEN|INPUT|UPLOAD)_[A-Z_]+[A-Z])\b", code))
    assert read
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert not {name for name in read if f"`{name}`" not in page}


@pytest.mark.parametrize("predictor", ["predict", "songstarter", "streaming"])
def test_the_table_of_inputs_agrees_with_the_schema(predictor):
    contract = json.loads((ROOT / "tests" / "contract" / f"{predictor}.openapi.json").read_text())
    schemas = contract["components"]["schemas"]
    page = (ROOT / "docs" / "api.md").read_text()
    page = page[page.index("## Inputs") : page.index("### Levels")]
    rows = dict(re.findall(r"^\| `(\w+)`(?: \([^)]*\))? \| (.*) \|$", page, re.MULTILINE))
    for name, field in schemas["Input"]["properties"].items():
        kind, default = rows[name].split(" | ")[:2]
        if "default" in field:
            value = field["default"]
            shown = value if isinstance(value, str) else json.dumps(value)
            assert shown in default.replace("`", ""), name
        for bound in ("minimum", "maximum"):
            assert bound not in field or re.search(rf"(?<!\d){field[bound]}(?!\d)", kind), name
