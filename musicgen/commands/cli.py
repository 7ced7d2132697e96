"""The commands in scripts/: predict, serve, weights."""

import argparse
import base64
import json
import mimetypes
import os
import re
import sys
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

from musicgen.checkpoints import folders
from musicgen.commands import server
from musicgen.errors import MusicGenError

EXTENSIONS = {"audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav"}
PROGRESS_BAR = "%|"
# What Cog puts before an exception's text, some of it twice: the command says "Error" itself.
PREFIXES = re.compile(r"^(([\w ]*prediction failed|\w*Error): )+", re.IGNORECASE)


def main() -> None:
    """Run the command that the first argument names; errors are one line and exit code 1."""
    command, *arguments = sys.argv[1:]
    try:
        COMMANDS[command](arguments)
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")


def predict(arguments: list[str]) -> None:
    """One prediction by a Cog server that lives as long as it takes."""
    parser = argparse.ArgumentParser(prog="scripts/predict", description=predict.__doc__)
    parser.add_argument("-i", dest="inputs", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-o", dest="folder", type=Path, default=Path("out"), metavar="FOLDER")
    options = with_predictor(parser, arguments)
    with predictions_log() as log, server.running(options.predictor, log) as url:
        fields = _fields(url)
        inputs = dict(read_input(item, fields) for item in options.inputs)
        output = post(url, inputs)
    print(json.dumps(save(output, options.folder), indent=2))


def serve(arguments: list[str]) -> None:
    """The Cog server in the foreground."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description=serve.__doc__)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1")
    options = with_predictor(parser, arguments)
    server.serve(options.predictor, options.host, options.port)


def weights(arguments: list[str]) -> None:
    """Checkpoints: fetch, convert, check, make."""
    from musicgen.commands import weights as command

    command.main(arguments)


COMMANDS = {"predict": predict, "serve": serve, "weights": weights}


@contextmanager
def predictions_log() -> Iterator[IO[str]]:
    """A stream for the server's log (JSON lines); what predictions say goes on to the terminal."""
    source, sink = os.pipe()
    reader = threading.Thread(target=_echo, args=(source,))
    reader.start()
    with os.fdopen(sink, "w") as stream:
        yield stream
    reader.join()


def _echo(source: int) -> None:
    with os.fdopen(source) as lines:
        for line in lines:
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("target") == "coglet::prediction" and "source" in record["fields"]:
                text = record["fields"]["message"]
                # A progress bar replaces itself until it is full.
                moving = PROGRESS_BAR in text and "100%" not in text
                print(text, end="\r" if moving else "\n", file=sys.stderr)


def read_input(item: str, fields: dict[str, Any]) -> tuple[str, Any]:
    """`name=value` -> (name, value of the field's type); `@file` becomes a data URI."""
    name, separator, text = item.partition("=")
    if not separator or name not in fields:
        raise MusicGenError(f"-i {item}: write NAME=VALUE, NAME one of {', '.join(fields)}")
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return name, f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if fields[name].get("type") in ("integer", "number", "boolean"):
        try:
            return name, json.loads(text.lower())
        except ValueError:
            return name, text  # the server says what it expects
    return name, text


def post(url: str, inputs: dict[str, Any]) -> Any:
    """The output of one prediction. Raises MusicGenError with the server's message."""
    try:
        answer = server.call(f"{url}/predictions", {"input": inputs})
    except urllib.error.HTTPError as exc:
        detail = json.load(exc).get("detail", str(exc))
        if isinstance(detail, list):
            detail = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in detail)
        raise MusicGenError(str(detail)) from exc
    if answer["status"] != "succeeded":
        raise MusicGenError(PREFIXES.sub("", str(answer.get("error", answer["status"]))))
    return answer["output"]


def save(output: Any, folder: Path) -> Any:
    """`output` with every file in it written into `folder` and named instead."""
    if isinstance(output, list):
        return [_save_file(item, folder, f"clip-{index}") for index, item in enumerate(output)]
    return {
        key: _save_file(value, folder, key) if key == "audio" else value
        for key, value in output.items()
    }


def _save_file(uri: str, folder: Path, name: str) -> str:
    if not uri.startswith("data:"):
        return uri  # it is in the bucket
    folder.mkdir(parents=True, exist_ok=True)
    with urlopen(uri) as response:
        suffix = EXTENSIONS[response.headers.get_content_type()]
        path = folder / f"{name}{suffix}"
        path.write_bytes(response.read())
    return str(path)


def _fields(url: str) -> dict[str, Any]:
    document = server.call(f"{url}/openapi.json")
    fields: dict[str, Any] = document["components"]["schemas"]["Input"]["properties"]
    return fields


def with_predictor(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse with the options of both serving commands; the environment names the weights."""
    parser.add_argument("--predictor", choices=server.PREDICTORS, default="predict")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    os.environ["MUSICGEN_WEIGHTS"] = str(folders.resolve(options.weights).resolve())
    return options


if __name__ == "__main__":
    main()
