"""The commands scripts/predict, scripts/serve and scripts/weights."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from musicgen.commands import client, options, server
from musicgen.commands.client import Client, Prediction
from musicgen.errors import MusicGenError

PROGRESS_BAR = "%|"


def main() -> None:
    """Run the command that the first argument names. An error is one line and exit code 1."""
    command, *arguments = sys.argv[1:]
    try:
        COMMANDS[command](arguments)
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")


def predict(arguments: list[str]) -> None:
    """Start a Cog server, make one prediction, save its audio, and stop the server."""
    parser = options.make_parser("predict", predict.__doc__)
    parser.add_argument("-i", dest="inputs", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-o", dest="folder", type=Path, default=Path("out"), metavar="FOLDER")
    options.add_model_options(parser)
    parsed = parser.parse_args(arguments)
    options.choose_weights(parsed.weights)
    with prediction_log() as log, server.running(parsed.predictor, log) as url:
        cog = Client(url)
        fields = cog.document()["components"]["schemas"]["Input"]["properties"]
        inputs = dict(read_input(item, fields) for item in parsed.inputs)
        prediction = cog.predict(inputs)
    print(json.dumps(save(prediction, parsed.folder), indent=2))


def serve(arguments: list[str]) -> None:
    """Run the Cog server in the foreground until ctrl-C."""
    parser = options.make_parser("serve", serve.__doc__)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1")
    options.add_model_options(parser)
    parsed = parser.parse_args(arguments)
    options.choose_weights(parsed.weights)
    server.serve(parsed.predictor, parsed.host, parsed.port)


def weights(arguments: list[str]) -> None:
    """Fetch, convert and verify checkpoints."""
    from musicgen.commands import weights as command

    command.main(arguments)


COMMANDS = {"predict": predict, "serve": serve, "weights": weights}


@contextmanager
def prediction_log() -> Iterator[IO[str]]:
    """A stream for the server's log, in JSON lines. Lines of predictions are shown on stderr."""
    source, sink = os.pipe()
    reader = threading.Thread(target=_show_predictions, args=(source,))
    reader.start()
    with os.fdopen(sink, "w") as stream:
        yield stream
    reader.join()


def _show_predictions(source: int) -> None:
    with os.fdopen(source) as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # not a line of Cog's log
                record = json.loads(line)
                if record["target"] == "coglet::prediction" and "source" in record["fields"]:
                    _show(record["fields"]["message"])


def _show(text: str) -> None:
    # The next state of a progress bar overwrites the last one, until the bar is full.
    moving = PROGRESS_BAR in text and "100%" not in text
    print(text, end="\r" if moving else "\n", file=sys.stderr)


def read_input(item: str, fields: dict[str, Any]) -> tuple[str, Any]:
    """`name=value` -> (name, value in the field's type). `@file` is sent as a data URI."""
    name, separator, text = item.partition("=")
    if not separator or name not in fields:
        raise MusicGenError(f"-i {item}: write NAME=VALUE, NAME one of {', '.join(fields)}")
    if text.startswith("@"):
        return name, client.data_uri(Path(text[1:]).expanduser())
    if fields[name].get("type") in ("integer", "number", "boolean"):
        try:
            return name, json.loads(text.lower())
        except ValueError:
            return name, text  # the server names the type that it expects
    return name, text


def save(prediction: Prediction, folder: Path) -> Any:
    """The prediction's output, its audio written into `folder` and replaced by file names."""
    if isinstance(prediction.output, list):
        clips = enumerate(prediction.output)
        return [_save_file(uri, folder, f"clip-{index}") for index, uri in clips]
    return prediction.output | {"audio": _save_file(prediction.output["audio"], folder, "audio")}


def _save_file(uri: str, folder: Path, name: str) -> str:
    if not uri.startswith("data:"):
        return uri  # an address in the bucket
    folder.mkdir(parents=True, exist_ok=True)
    return str(client.save(uri, folder, name))


if __name__ == "__main__":
    main()
