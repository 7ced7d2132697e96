"""The sections of a training configuration that inference reads, with references resolved.

Upstream's configurations are OmegaConf's, which can also call functions: `${oc.env:HOME}` is an
environment variable. They are not resolved by OmegaConf here. A reference to another setting
(`${sample_rate}`) is followed; anything else in a `${}` is refused by the name of its setting.
Sections that are not read are dropped unresolved: upstream's `dora.dir` holds `${oc.env:USER}`.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from musicgen.errors import WeightsError

REFERENCE = re.compile(r"\$\{([\w.]+)\}")
MAX_TEXT = 2**18  # characters; upstream's configurations have about 10,000
MAX_VALUES = 5_000  # of the sections that are read; upstream's have about 100
MAX_DEPTH = 50
MAX_REFERENCES = 8  # in a chain of settings, each of which refers to the next


def read_yaml(path: Path, text: str) -> dict[str, Any]:
    """The mapping in the YAML `text` of file `path`.

    Refused are aliases, by which a few lines can describe more than any memory holds, and deep
    nesting, which crashes the parser.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"its configuration has more than {MAX_TEXT} characters")
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise WeightsError(f"{path}: its configuration (xp.cfg) has YAML aliases; none should.")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"its configuration has more than {MAX_DEPTH} levels")
    document = yaml.load(text, yaml.CSafeLoader)
    if not isinstance(document, dict):
        raise ValueError("its configuration is not a mapping")
    return document


def select_sections(
    path: Path, document: Mapping[str, Any], names: Sequence[str], references: bool = True
) -> DictConfig:
    """Settings `names` (dotted) of `document`, those that exist, as a configuration of their own.

    With `references` false, references to other settings are refused as well. Raises WeightsError
    naming file and setting.
    """
    selected: dict[str, Any] = {}
    for name in names:
        *parents, last = name.split(".")
        source, target = document, selected
        for parent in parents:
            source = source.get(parent) or {}
        if last not in source:
            continue
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _resolved(path, name, source[last], document if references else None)
    if _count(selected) > MAX_VALUES:  # OmegaConf needs a millisecond for each
        raise ValueError(f"its configuration has more than {MAX_VALUES} values")
    config: DictConfig = OmegaConf.create(selected)
    return config


def _resolved(path: Path, name: str, value: Any, document: Mapping[str, Any] | None) -> Any:
    """`value` of the setting `name` as plain data."""
    if isinstance(value, Mapping):
        return {key: _resolved(path, f"{name}.{key}", v, document) for key, v in value.items()}
    if isinstance(value, list):
        return [_resolved(path, f"{name}.{i}", v, document) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    found: Any = value
    for _ in range(MAX_REFERENCES):
        match = REFERENCE.fullmatch(found) if document is not None else None
        if match is None:
            break
        found = _look_up(document, match[1])
        if not isinstance(found, str) or "${" not in found:
            return found
    raise WeightsError(
        f"{path}: {name}={reprlib.repr(value)} is refused: only a reference to another setting of "
        "the training configuration (${a.b}) is followed. Write the value itself."
    )


def _count(value: Any) -> int:
    """The number of values in nested mappings and lists."""
    if isinstance(value, Mapping):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _look_up(document: Any, name: str) -> Any:
    """The setting `name` (dotted); raises ValueError unless it is a single value."""
    found = document
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"there is no setting {name}")
        found = found[part]
    if isinstance(found, Mapping | list):
        raise ValueError(f"{name} is not a single value")
    return found
