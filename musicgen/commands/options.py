"""Command line options that several commands share."""

import argparse
import os
from pathlib import Path

from musicgen import __version__
from musicgen.checkpoints import folders
from musicgen.commands.server import PREDICTORS


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for scripts/`command`, with --version."""
    parser = argparse.ArgumentParser(prog=f"scripts/{command}", description=description)
    parser.add_argument("--version", action="version", version=f"musicgen {__version__}")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --predictor and --weights."""
    parser.add_argument(
        "--predictor",
        choices=PREDICTORS,
        default=PREDICTORS[0],
        help="which API to serve (default: %(default)s)",
    )
    add_weights_option(parser)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add --weights, for `choose_weights`."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="checkpoint folder (default: MUSICGEN_WEIGHTS, or the demo model in weights/demo)",
    )


def choose_weights(option: Path | None) -> Path:
    """The folder of the checkpoint to serve, also set as MUSICGEN_WEIGHTS for the servers that
    this process starts."""
    folder = folders.resolve(option).resolve()
    os.environ["MUSICGEN_WEIGHTS"] = str(folder)
    return folder
