"""Inputs of the API as components of a form, and the form's values as inputs of a request."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.commands.client import data_uri
from musicgen.commands.inputs import NUMBERS, Field

AREAS = {"prompt": 3}  # lines


def title(field: Field) -> str:
    """The label of a field."""
    return field.name.replace("_", " ").capitalize()


def info(field: Field) -> str:
    """The description and the range of values."""
    bounds = f"{field.bounds}." if field.bounds else ""
    return " ".join(filter(None, [field.description, bounds]))


def component(field: Field) -> gr.components.Component:
    """The component that edits a field. It checks no bounds: the server does."""
    common: dict[str, Any] = {"label": title(field), "elem_id": f"field-{field.name}"}
    if field.kind == "audio":
        common |= {"sources": ["upload", "microphone"], "buttons": ["download"]}
        return gr.Audio(type="filepath", **common)
    common |= {"info": info(field), "value": field.default}
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
            return value  # the server names the type that it expects
        if math.isfinite(number):
            return int(number) if number.is_integer() else number
    return value


def api_inputs(listed: list[Field], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as inputs of the API, without those that are None. Files become data URIs."""
    kinds = {field.name: field.kind for field in listed}
    return {
        name: data_uri(Path(value)) if kinds[name] == "audio" else value
        for name, value in settings.items()
        if value is not None
    }


def without_secrets(listed: list[Field], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a take stores: all but secrets."""
    secrets = {field.name for field in listed if field.kind == "secret"}
    return {name: value for name, value in settings.items() if name not in secrets}
