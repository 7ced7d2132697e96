"""What README and docs/ say can be followed to the letter."""

import os
import re
from pathlib import Path

import pytest
import yaml

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands.server import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "weights/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def anchors(page):
    """The places of a page that a link can name, as GitHub makes them of its titles."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readmes_python_runs_as_printed(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "demo").symlink_to(DEFAULT)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["wav"].shape == (2, 4 * 32000)
    assert Path("soul.mp3").stat().st_size > 100_000


@pytest.mark.parametrize("name", ["test", "push"])
def test_workflows_call_scripts_that_exist(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    scripts = re.findall(r"scripts/\w+", " ".join(step.get("run", "") for step in steps))
    assert scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_picture_of_the_house_shows_every_room():
    [picture] = re.findall(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rooms = {path.parent.name for path in (ROOT / "musicgen").glob("*/__init__.py")}
    assert set(re.findall(r"(\w+)/[<\",]", picture)) - {"scripts"} == rooms
