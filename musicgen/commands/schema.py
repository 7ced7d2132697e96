"""A predictor's source -> the OpenAPI document that `cog build` would write for it.

Cog's server validates inputs against `.cog/openapi_schema.json`. Only `cog build` writes that file,
and it needs Docker. This module makes the same document from the same source, by the rules of Cog
0.23's static parser, which reads literals and executes nothing. Source that this parser would
silently drop or misread raises SchemaError here.

    python -m musicgen.commands.schema predict.py .cog/openapi_schema.json
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

# The part that all predictors have in common: paths, requests, responses, errors.
FRAME = Path(__file__).with_name("openapi.json")

TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "dict": {"type": "object"},
    "List[Path]": {"type": "array", "items": TYPES["Path"]},
    "AsyncIterator[dict]": {
        "type": "array",
        "items": {"type": "object"},
        "x-cog-array-type": "iterator",
    },
}
STREAMING = ("streaming", "cog.streaming")  # decorator, without its @
KEYWORDS = {"default": "default", "description": "description", "ge": "minimum", "le": "maximum"}

# One plain literal: no escapes, no adjacent or parenthesised strings, no names, no arithmetic.
STRING = r'"[^"\\\n]*"'
LITERAL = re.compile(
    rf"{STRING}|-?\d+(\.\d+)?|True|False|\[\s*{STRING}(\s*,\s*{STRING})*\s*,?\s*\]"
)


class SchemaError(ValueError):
    """Cog's parser would drop or misread this source."""


def openapi(source: str) -> dict[str, Any]:
    """The OpenAPI document for the `Predictor` in `source`. Raises SchemaError."""
    method = _predict_method(source)
    enums: dict[str, Any] = {}
    properties, required = {}, []
    names = [arg for arg in method.args.args if arg.arg != "self"]
    for order, (arg, default) in enumerate(zip(names, method.args.defaults, strict=True)):
        options = _options(source, arg.arg, default)
        annotation = ast.unparse(arg.annotation) if arg.annotation else ""
        properties[arg.arg] = _property(arg.arg, annotation, options, enums) | {"x-order": order}
        if "default" not in options and not annotation.startswith("Optional["):
            required.append(arg.arg)
    inputs = {"type": "object", "title": "Input", "properties": properties}
    if required:
        inputs["required"] = required
    output = OUTPUTS.get(ast.unparse(method.returns) if method.returns else "")
    if output is None:
        raise SchemaError(f"predict() must return one of {', '.join(OUTPUTS)}")
    streaming = any(ast.unparse(decorator) in STREAMING for decorator in method.decorator_list)
    if streaming and "x-cog-array-type" not in output:
        raise SchemaError("Cog's parser allows @streaming only on iterators: AsyncIterator[dict]")
    document: dict[str, Any] = json.loads(FRAME.read_text())
    if streaming:
        document["paths"]["/predictions"]["post"]["x-cog-streaming"] = True
    document["components"]["schemas"] |= {
        "Input": inputs,
        "Output": {"title": "Output", **output},
        **enums,
    }
    return document


def write(predictor: Path, target: Path) -> None:
    """Write `predictor`'s document to `target`, unless the file has that content already."""
    text = json.dumps(openapi(predictor.read_text()), indent=1)
    if not target.exists() or target.read_text() != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def concurrency(source: str) -> int:
    """The maximum concurrency of a predictor: N of its `@concurrent(max=N)`, or 1 without it.

    The server's environment variable COG_MAX_CONCURRENCY overrides it.
    """
    for decorator in _predict_method(source).decorator_list:
        text = ast.unparse(decorator)
        if text in STREAMING:
            continue
        limit = re.fullmatch(r"(cog\.)?concurrent\(max=(\d+)\)", text)
        if limit is None:
            raise SchemaError(
                f"@{text}: Cog reads only @streaming and @concurrent(max=N), N a plain number"
            )
        return int(limit[2])
    return 1


def _predict_method(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "predict":
            return node
    raise SchemaError("no predict() method")


def _options(source: str, field: str, call: ast.expr) -> dict[str, Any]:
    """The keywords of one `Input(...)`. Raises SchemaError unless each is a literal for Cog too."""
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "Input" and not call.args):
        raise SchemaError(f"{field}: not an Input(...) with keyword arguments only")
    options = {}
    for keyword in call.keywords:
        text = ast.get_source_segment(source, keyword) or ""
        value = text.partition("=")[2].strip()
        if keyword.arg not in {*KEYWORDS, "choices"} or not LITERAL.fullmatch(value):
            raise SchemaError(f"{field}: Cog's parser would drop or misread `{text}`")
        options[keyword.arg] = ast.literal_eval(keyword.value)
    return options


def _property(
    field: str, annotation: str, options: dict[str, Any], enums: dict[str, Any]
) -> dict[str, Any]:
    inner = annotation.removeprefix("Optional[").removesuffix("]")
    if inner not in TYPES:
        raise SchemaError(
            f"{field}: type {annotation or 'missing'} is not one of {', '.join(TYPES)}"
        )
    described = {KEYWORDS[key]: value for key, value in options.items() if key in KEYWORDS}
    if "choices" in options:
        enums[field] = {
            "title": field,
            "description": "An enumeration.",
            "enum": options["choices"],
            **TYPES[inner],
        }
        return {"allOf": [{"$ref": f"#/components/schemas/{field}"}], **described}
    if annotation.startswith("Optional["):
        described["nullable"] = True
    return {"title": field.replace("_", " ").title(), **TYPES[inner], **described}


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
