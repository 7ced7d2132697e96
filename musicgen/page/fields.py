"""The inputs in a server's OpenAPI document -> components of the form -> inputs of a request."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.commands.client import data_uri

NUMBERS = ("integer", "number")
AREAS = {"prompt": 3}  # lines


@dataclass(frozen=True)
class Field:
    """One input. `kind` is text, secret, audio, integer, number, boolean or choice."""

    name: str
    title: str
    description: str
    kind: str
    default: Any
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def info(self) -> str:
        """The description and the range of values."""
        return " ".join(filter(None, [self.description, self.bounds]))

    @property
    def bounds(self) -> str:
        """The range in words, or "" if there is none."""
        low, high = self.minimum, self.maximum
        if low is None or self.kind not in NUMBERS:
            return ""
        return f"{low:g} or more." if high is None else f"{low:g} to {high:.0f}."


def read(document: dict[str, Any]) -> list[Field]:
    """The inputs in a Cog server's OpenAPI document, in its order."""
    schemas = document["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    ordered = sorted(properties.items(), key=lambda item: item[1].get("x-order", 0))
    return [_field(name, described, schemas) for name, described in ordered]


def _field(name: str, described: dict[str, Any], schemas: dict[str, Any]) -> Field:
    choices: tuple[str, ...] = ()
    for part in described.get("allOf", ()):
        choices = tuple(schemas[part["$ref"].rpartition("/")[2]].get("enum", ()))
    kinds = {"password": "secret", "uri": "audio"}
    kind = kinds.get(described.get("format", ""), described.get("type", "string"))
    return Field(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=described.get("description", ""),
        kind="choice" if choices else {"string": "text"}.get(kind, kind),
        default=described.get("default"),
        minimum=described.get("minimum"),
        maximum=described.get("maximum"),
        choices=choices,
    )


def component(field: Field) -> gr.components.Component:
    """The component that edits a field. It checks no bounds: the server does."""
    common: dict[str, Any] = {"label": field.title, "elem_id": f"field-{field.name}"}
    if field.kind == "audio":
        common |= {"sources": ["upload", "microphone"], "buttons": ["download"]}
        return gr.Audio(type="filepath", **common)
    common |= {"info": field.info, "value": field.default}
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
