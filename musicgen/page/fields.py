"""Inputs of the API as components of a form, and the form's values as inputs of a request."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.commands.client import data_uri
from musicgen.commands.inputs import NUMBERS, Field
from musicgen.page import words

AREAS = {"prompt": 3}  # lines
# Sent with every request, if the server has the input, instead of being a field of the form: a take
# is kept as wav, and its mp3 is made from that.
FIXED = {"output_format": "wav"}
LINKABLE = (*NUMBERS, "text", "boolean")  # kinds that a link to the page can fill in
FILE_VALUE = re.compile(r"^\w+='[^']*':?\s*")  # how a message about a file begins


def component(field: Field) -> gr.components.Component:
    """The component that edits a field. Its bounds are checked by `errors` and by the server."""
    common: dict[str, Any] = {"label": words.label(field), "elem_id": f"field-{field.name}"}
    if field.kind == "audio":
        common |= {"sources": ["upload", "microphone"], "buttons": ["download"]}
        return gr.Audio(type="filepath", **common)
    common |= {"info": words.hint(field), "value": field.default}
    if field.kind == "boolean":
        return gr.Checkbox(**common)
    if field.kind == "choice":
        return gr.Radio(list(field.choices), **common)
    if field.kind in NUMBERS and field.default is not None:
        return gr.Number(step=1 if field.kind == "integer" else 0.05, **common)
    if field.kind in NUMBERS:  # an empty gr.Number would show and send 0
        return gr.Textbox(**common)
    if field.kind == "secret":
        return gr.Textbox(type="password", **common)
    return gr.Textbox(lines=AREAS.get(field.name, 1), **common)


def settings(listed: list[Field], values: Iterable[Any]) -> dict[str, Any]:
    """The form's values by name, with numbers parsed. An empty field is None."""
    return {field.name: _value(field, v) for field, v in zip(listed, values, strict=True)}


def _value(field: Field, value: Any) -> Any:
    if value == "":
        return None
    if field.kind in NUMBERS and value is not None:
        try:
            number = float(value)
        except ValueError:
            return value
        if math.isfinite(number):
            return int(number) if number.is_integer() else number
    return value


def of_query(listed: list[Field], query: dict[str, str]) -> dict[str, Any]:
    """Settings in the query of the page's address. Files, secrets and wrong values are left out."""
    known = [field for field in listed if field.name in query and field.kind in LINKABLE]
    values = [
        query[field.name] == "true" if field.kind == "boolean" else query[field.name]
        for field in known
    ]
    wanted = settings(known, values)
    wrong = errors(known, wanted)
    return {name: value for name, value in wanted.items() if name not in wrong}


def errors(listed: list[Field], settings: dict[str, Any]) -> dict[str, str]:
    """A message for each number that the server would refuse, by field."""
    found = {}
    for field in listed:
        value = settings[field.name]
        if field.kind in NUMBERS and not _accepts(field, value):
            given = "it is empty" if value is None else f"not {value}"
            found[field.name] = f"{words.label(field)}: {words.fix(field)}; {given}."
    return found


def _accepts(field: Field, value: Any) -> bool:
    if value is None:
        return field.default is None
    kinds = (int,) if field.kind == "integer" else (int, float)
    if not isinstance(value, kinds):
        return False
    low, high = field.minimum, field.maximum
    return (low is None or value >= low) and (high is None or value <= high)


def named(
    listed: list[Field], messages: dict[str, str], settings: dict[str, Any]
) -> dict[str, str]:
    """The server's messages with the page's labels, and the user's file instead of the server's."""
    known = {field.name: field for field in listed}
    return {name: _named(known.get(name), text, settings) for name, text in messages.items()}


def _named(field: Field | None, text: str, settings: dict[str, Any]) -> str:
    if field is None:
        return text
    rest = FILE_VALUE.sub("", text.removeprefix(f"{field.name}: "))
    value = settings.get(field.name)
    if field.kind == "audio" and value:
        rest = f"{Path(value).name} {rest}"
    elif rest.startswith(f"{field.name}="):
        _, _, rest = rest.partition("=")
    return f"{words.label(field)}: {rest}"


def api_inputs(listed: list[Field], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as inputs of the API, without those that are None. Files become data URIs."""
    kinds = {field.name: field.kind for field in listed}
    return {
        name: data_uri(Path(value)) if kinds.get(name) == "audio" else value
        for name, value in settings.items()
        if value is not None
    }


def without_secrets(listed: list[Field], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a take stores: all but secrets."""
    secrets = {field.name for field in listed if field.kind == "secret"}
    return {name: value for name, value in settings.items() if name not in secrets}
