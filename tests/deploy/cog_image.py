"""What `cog build` would put into an image, computed from the cog files and .dockerignore."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from musicgen.commands.server import ROOT

CONFIGS = {
    "predict": "cog.yaml",
    "songstarter": "cog.songstarter.yaml",
    "streaming": "cog.streaming.yaml",
}


def config(predictor: str) -> dict:
    return yaml.safe_load((ROOT / CONFIGS[predictor]).read_text())


def environment(predictor: str, source: Path) -> dict[str, str]:
    """The image's environment, with `source` in the place of /src."""
    pairs = (line.split("=", 1) for line in config(predictor)["environment"])
    return {name: value.replace("/src", str(source)) for name, value in pairs}


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore excludes a file: the last pattern for it or a parent wins."""
    parents = [*Path(path).parents]
    names = [path, *(str(parent) for parent in parents[:-1])]
    ignored = False
    for pattern in patterns:
        expression = re.compile(regex(pattern.removeprefix("!")))
        if any(expression.fullmatch(name) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def regex(pattern: str) -> str:
    """A pattern of .dockerignore as a regular expression: ** crosses folders, * does not."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", pattern.strip("/"))
    return "".join(parts.get(token) or re.escape(token) for token in tokens)


def context(root: Path) -> Iterator[Path]:
    """The files below `root` that its .dockerignore lets into the build."""
    lines = (root / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and not is_ignored(name, patterns):
            yield path


def clone(folder: Path) -> Path:
    """A copy of the tracked files, and of those that are new and not ignored by git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, target: Path) -> Path:
    """What /src holds in the image: the build context of `source`."""
    for path in context(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target
