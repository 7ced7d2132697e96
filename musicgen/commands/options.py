"""Command line options, checks and exit codes that several commands share."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musicgen import __version__
from musicgen.checkpoints import folders
from musicgen.commands.server import PREDICTORS
from musicgen.errors import MusicGenError, WeightsError

INTERRUPTED = 130  # exit code after ctrl-C, as of a shell


def make_parser(
    command: str, description: str | None, add_help: bool = True
) -> argparse.ArgumentParser:
    """A parser for scripts/`command`, with --version."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/{command}",
        description=description,
        add_help=add_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"musicgen {__version__}")
    return parser


def add_model_options(parser: argparse.ArgumentParser, default: str = PREDICTORS[0]) -> None:
    """Add --predictor and --weights."""
    parser.add_argument(
        "--predictor",
        choices=PREDICTORS,
        default=default,
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


def add_address_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add --host and --port."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on, 0.0.0.0 for all (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=port, help="default: %(default)s")


def choose_weights(option: Path | None) -> str:
    """The checkpoint folder or address to serve, also set in the environment for servers.

    --weights overrides COG_WEIGHTS, which overrides MUSICGEN_WEIGHTS. Paths become absolute, since
    servers run in another folder. Raises WeightsError if there is no checkpoint at the path.
    """
    if option:
        os.environ.pop("COG_WEIGHTS", None)
    variable = "COG_WEIGHTS" if os.environ.get("COG_WEIGHTS") else "MUSICGEN_WEIGHTS"
    chosen = str(option or os.environ.get(variable) or folders.DEFAULT)
    if "://" not in chosen:
        chosen = str(check_checkpoint(Path(chosen)))
    os.environ[variable] = chosen
    return chosen


def check_checkpoint(folder: Path) -> Path:
    """The absolute path of a checkpoint folder. Raises WeightsError if it is not one."""
    path = folder.expanduser().resolve()
    advice = "Name a checkpoint folder, or fetch one: scripts/weights pull OWNER/NAME."
    if not path.exists():
        raise WeightsError(f"The checkpoint folder {path} does not exist. {advice}")
    if not path.is_dir():
        raise WeightsError(f"{path} is a file, not a checkpoint folder. {advice}")
    names = (folders.MANIFEST_FILE, folders.LM_FILE)
    if not any((path / name).exists() for name in names):
        raise WeightsError(f"{path} is not a checkpoint: no {' or '.join(names)} in it. {advice}")
    return path


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Raises MusicGenError if the port cannot be used."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as exc:
        reason = (getattr(exc, "strerror", None) or str(exc)).lower()
        message = f"Port {port} of {host} cannot be used: {reason}. Choose another with {option}."
        raise MusicGenError(message) from exc


@contextmanager
def exit_codes(terminated: int = 143) -> Iterator[None]:
    """Turn errors into one line on stderr and exit code 1, ctrl-C into 130, SIGTERM into a code.

    Both signals raise an exception, so that servers are stopped and temporary folders removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(terminated))
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")
