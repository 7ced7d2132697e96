"""Checks the names of a prediction's inputs. Cog ignores unknown names, and a missing `input`."""

import asyncio
import json
from collections.abc import Sequence
from typing import IO, Any

from musicgen.commands.inputs import nearest

IN_THREAD = 1 << 20  # bytes; a longer body is parsed in a thread, while the gate serves others


async def check(body: IO[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
    """The problems of a request's body, in the form of Cog's errors; empty if there are none.

    A body that is not a JSON object has none here: the server refuses it.
    """
    if body.seek(0, 2) > IN_THREAD:
        return await asyncio.to_thread(_check, body, names)
    return _check(body, names)


def _check(body: IO[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
    body.seek(0)
    try:
        request = json.load(body)
    except ValueError:
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
        for name in inputs
        if name not in names
    ]


def _problem(place: list[str], message: str) -> dict[str, Any]:
    return {"loc": place, "msg": message, "type": "value_error"}
