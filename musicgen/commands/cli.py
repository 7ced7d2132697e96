"""The commands scripts/predict, scripts/serve and scripts/weights."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen.commands import client, inputs, log, options, results, schema, server
from musicgen.commands.client import Client, Prediction, RefusedError
from musicgen.errors import MusicGenError
from musicgen.serving.result_files import COG_FOLDER

if TYPE_CHECKING:
    from musicgen.commands.again import Original


def main() -> None:
    """Run the command that the first argument names. An error is one line and exit code 1."""
    command, *arguments = sys.argv[1:]
    with options.exit_codes(terminated=0 if command == "serve" else 143):
        COMMANDS[command](arguments)


def predict(arguments: list[str]) -> None:
    """Start a Cog server, make one prediction, save its audio, and stop the server."""
    parser = options.make_parser("predict", predict.__doc__)
    parser.add_argument(
        "-i",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input, such as -i duration=4 or -i input_audio=@song.mp3; may be repeated",
    )
    parser.add_argument(
        "-o",
        dest="folder",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="folder for the audio; existing files are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        dest="original",
        type=Path,
        metavar="FILE",
        help="make FILE again: its tags give the inputs. -i replaces them, and gives the inputs "
        "that the tags do not have (prompt, input_audio)",
    )
    options.add_model_options(parser)
    fields = inputs.read_fields(_document(arguments))
    parser.epilog = f"inputs:\n{inputs.describe(fields)}"
    parsed = parser.parse_args(arguments)

    values = dict(inputs.parse(item, fields) for item in parsed.inputs)
    original = _original(parsed.original)
    if original:
        values = original.inputs(values, fields)
    inputs.check_files(values)
    options.choose_weights(parsed.weights)
    with (
        results.folder_for(parsed.folder),
        log.read_by(log.Predictions(sys.stderr)) as stream,
        server.running(parsed.predictor, stream, original.environment if original else None) as url,
    ):
        prediction = _predict(Client(url), values)
    output = results.save(prediction, parsed.folder)
    print(json.dumps(output, indent=2, ensure_ascii=False))
    if original:
        copy = output[0] if isinstance(output, list) else output["audio"]
        print(original.compared(copy), file=sys.stderr)


def _original(file: Path | None) -> "Original | None":
    """What the tags of a file say, if one is to be made again."""
    if file is None:
        return None
    from musicgen.commands.again import Original  # --help runs without the package that reads tags

    return Original.read(file)


def _document(arguments: list[str]) -> dict[str, Any]:
    """The OpenAPI document of the predictor that the command line chooses."""
    parser = options.make_parser("predict", None, add_help=False)
    options.add_model_options(parser)
    chosen = parser.parse_known_args(arguments)[0].predictor
    return schema.openapi(server.source(chosen).read_text())


def _predict(cog: Client, values: dict[str, Any]) -> Prediction:
    name = client.new_id()
    try:
        return cog.predict(inputs.encode(values), name)
    except RefusedError as exc:
        raise MusicGenError(inputs.name_own_file(str(exc), values)) from exc
    finally:
        for folder in ("inputs", "outputs", ""):  # Cog leaves them, empty
            with suppress(OSError):
                (COG_FOLDER / name / folder).rmdir()


def serve(arguments: list[str]) -> None:
    """Run the Cog server in the foreground until ctrl-C."""
    parser = options.make_parser("serve", serve.__doc__)
    options.add_address_options(parser, 5000)
    options.add_model_options(parser)
    parsed = parser.parse_args(arguments)
    options.check_port(parsed.host, parsed.port)
    options.choose_weights(parsed.weights)
    server.serve(parsed.predictor, parsed.host, parsed.port)


def weights(arguments: list[str]) -> None:
    """Fetch, convert and verify checkpoints; compile their GPU kernels."""
    from musicgen.commands import weights as command

    command.main(arguments)


COMMANDS = {"predict": predict, "serve": serve, "weights": weights}

if __name__ == "__main__":
    main()
