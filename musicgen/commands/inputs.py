"""The inputs of a predictor, read from its OpenAPI document, and their values on a command line."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Any

from musicgen.commands.client import data_uri
from musicgen.errors import InputError, MusicGenError

NUMBERS = ("integer", "number")
INDENT = " " * 6
BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Field:
    """One input. `kind` is text, secret, audio, integer, number, boolean or choice."""

    name: str
    description: str
    kind: str
    default: Any
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def bounds(self) -> str:
        """The range of values in words, or "" if there is none."""
        low, high = self.minimum, self.maximum
        if low is None or self.kind not in NUMBERS:
            return ""
        return f"{low:g} or more" if high is None else f"{low:g} to {high:.0f}"

    @property
    def values(self) -> str:
        """The values that the field accepts, in words."""
        *first, last = self.choices or ("",)
        bounds = f", {self.bounds}" if self.bounds else ""
        return {
            "choice": f"{', '.join(first)} or {last}",
            "boolean": "true or false",
            "audio": "an http(s) address, a data URI, or @FILE",
            "integer": f"an integer{bounds}",
            "number": f"a number{bounds}",
            "secret": "text",
        }.get(self.kind, self.kind)


def read_fields(document: dict[str, Any]) -> dict[str, Field]:
    """The inputs in a Cog server's OpenAPI document, by name, in its order."""
    schemas = document["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    ordered = sorted(properties.items(), key=lambda item: item[1].get("x-order", 0))
    return {name: _field(name, described, schemas) for name, described in ordered}


def _field(name: str, described: dict[str, Any], schemas: dict[str, Any]) -> Field:
    choices: tuple[str, ...] = ()
    for part in described.get("allOf", ()):
        choices = tuple(schemas[part["$ref"].rpartition("/")[2]].get("enum", ()))
    kinds = {"password": "secret", "uri": "audio"}
    kind = kinds.get(described.get("format", ""), described.get("type", "string"))
    return Field(
        name=name,
        description=described.get("description", ""),
        kind="choice" if choices else {"string": "text"}.get(kind, kind),
        default=described.get("default"),
        minimum=described.get("minimum"),
        maximum=described.get("maximum"),
        choices=choices,
    )


def parse(item: str, fields: dict[str, Field]) -> tuple[str, Any]:
    """`name=value` -> (name, value for the API). A file `@path` becomes a Path.

    Raises MusicGenError for an unknown name, InputError for a value that the server would refuse.
    """
    name, separator, text = item.partition("=")
    if not separator:
        raise MusicGenError(f"-i {item}: write -i NAME=VALUE")
    if name not in fields:
        raise MusicGenError(f"-i {item}: there is no input {name!r}. {nearest(name, fields)}")
    field = fields[name]
    return name, PARSERS.get(field.kind, _text)(field, text)


def nearest(name: str, names: Collection[str]) -> str:
    """Advice for an unknown name: the nearest name, or all names."""
    near = get_close_matches(name, list(names), n=1)
    return f"Did you mean {near[0]}?" if near else f"The inputs are {', '.join(names)}."


def _text(field: Field, text: str) -> str:
    return text


def _integer(field: Field, text: str) -> int | None:
    if _is_null(field, text):
        return None
    try:
        value = int(text)
    except ValueError:
        raise _wrong(field, text, "not an integer") from None
    return int(_in_range(field, value))


def _number(field: Field, text: str) -> float | None:
    if _is_null(field, text):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(field, text, "not a number")
    return _in_range(field, value)


def _is_null(field: Field, text: str) -> bool:
    return field.default is None and text.lower() in ("null", "none")


def _in_range(field: Field, value: float) -> float:
    if field.minimum is not None and value < field.minimum:
        raise _wrong(field, value, f"below the minimum of {field.minimum:g}")
    if field.maximum is not None and value > field.maximum:
        raise _wrong(field, value, f"above the maximum of {field.maximum:g}")
    return value


def _boolean(field: Field, text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise _wrong(field, text, "not a boolean")
    return BOOLEANS[text.lower()]


def _choice(field: Field, text: str) -> str:
    if text not in field.choices:
        raise _wrong(field, text, "not one of the choices")
    return text


def _audio(field: Field, text: str) -> str | Path:
    """An address as it is, or the Path of `@path`, which must be a readable file."""
    if text.lower().startswith(("http://", "https://", "data:")):
        return text
    path = Path(text.removeprefix("@")).expanduser()
    if not text.startswith("@"):
        if path.exists():
            raise _wrong(field, text, "a file is sent with @", f"Write {field.name}=@{text}")
        raise _wrong(field, text, "not an address")
    try:
        with path.open("rb"):
            return path
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise _wrong(field, text, f"{reason} (in {Path.cwd()})", "Name an audio file") from None


PARSERS = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "choice": _choice,
    "audio": _audio,
}


def _wrong(field: Field, value: object, problem: str, fix: str | None = None) -> InputError:
    return InputError(field.name, value, problem, fix or f"Send {field.values}")


def check_files(values: dict[str, Any]) -> None:
    """Raises MusicGenError if a file that is to be sent is not audio, by its first samples."""
    from musicgen.audio_file import open_audio  # --help runs without the packages that it needs

    for path in [value for value in values.values() if isinstance(value, Path)]:
        try:
            with open_audio(path):
                pass
        except InputError as exc:
            raise MusicGenError(name_own_file(str(exc), values)) from exc


def encode(values: dict[str, Any]) -> dict[str, Any]:
    """Values with each Path replaced by a data URI of the file."""
    return {
        name: data_uri(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }


def name_own_file(message: str, values: dict[str, Any]) -> str:
    """A server's error message with the user's file instead of the server's temporary copy."""
    for name, value in values.items():
        if isinstance(value, Path) and message.startswith(f"{name}='"):
            _, _, rest = message.removeprefix(f"{name}='").partition("'")
            return f"{name}=@{value}{rest}"
    return message


def describe(fields: dict[str, Field]) -> str:
    """The inputs as lines of help text: name, values, default, description."""
    lines = []
    for field in fields.values():
        default = "" if field.default is None else f"; default: {_shown(field.default)}"
        lines.append(f"  {field.name}  ({field.values}{default})")
        lines.append(fill(field.description, 80, initial_indent=INDENT, subsequent_indent=INDENT))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
