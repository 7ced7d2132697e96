"""Checks the names of a prediction's inputs. Cog ignores unknown names, and a missing `input`."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

from musicgen.commands.inputs import nearest

IN_THREAD = 1 << 20  # bytes; a longer body is parsed in a thread, while the gate serves others
# Parsing a body takes 20 times its memory if it has many small values. An honest one has a few.
MAX_VALUES = 100_000
MAX_PROBLEMS = 10  # that are reported
MAX_NAME = 100  # characters of a name that are reported and compared


async def check(body: IO[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
    """The problems of a request's body, in the form of Cog's errors; empty if there are none.

    A body that is not a JSON object has none here: the server refuses it.
    """
    if body.seek(0, 2) > IN_THREAD:
        return await asyncio.to_thread(_check, body, names)
    return _check(body, names)


def _check(body: IO[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
    body.seek(0)
    content = body.read()
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        return [_problem(["body"], f"the body has more than {MAX_VALUES:,} values")]
    try:
        request = json.loads(content)
    except (ValueError, RecursionError):
        return []
    if not isinstance(request, dict):
        return []
    inputs = request.get("input")
    if inputs is None:
        return [_problem(["body", "input"], 'the body has no "input"')]
    if not isinstance(inputs, dict):
        return []
    return [
        _problem(["body", "input", name], f"there is no such input. {nearest(name, names)}")
        for name in islice(_unknown(inputs, names), MAX_PROBLEMS)
    ]


def _unknown(inputs: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """The beginning of each name that is not an input's."""
    return (name[:MAX_NAME] for name in inputs if name not in names)


def _problem(place: list[str], message: str) -> dict[str, Any]:
    return {"loc": place, "msg": message, "type": "value_error"}
