"""Bounds of the numbers in configurations, checked before any of them is used.

A configuration of a few bytes could otherwise ask for gigabytes, or for millions of layers, before
the missing weights are noticed.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen.errors import WeightsError


def check_numbers(
    path: Path, settings: Mapping[str, Any], limits: Mapping[str, int | float]
) -> None:
    """Raise WeightsError, naming file and setting, unless each number is above 0 and in its limit.

    An int as limit means that the number must be whole.
    """
    for name, limit in limits.items():
        found = settings.get(name)
        kinds = int if isinstance(limit, int) else int | float
        if not isinstance(found, kinds) or isinstance(found, bool) or not 0 < found <= limit:
            kind = "whole number" if isinstance(limit, int) else "number"
            raise WeightsError(
                f"{path}: {name}={reprlib.repr(found)} is not a {kind} above 0 and up to {limit}."
            )
