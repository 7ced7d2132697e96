"""The commands of scripts/weights: pull, convert, verify."""

import argparse
from pathlib import Path

from musicgen.checkpoints import folders
from musicgen.checkpoints.manifest import Manifest


def main(arguments: list[str]) -> None:
    """Run the command that `arguments` begin with. Raises WeightsError if it fails."""
    parser = argparse.ArgumentParser(prog="scripts/weights", description="Checkpoints.")
    commands = parser.add_subparsers(required=True)

    add = commands.add_parser("pull", help="fetch a model, or what a local one lacks; convert it")
    add.add_argument("model", metavar="MODEL", help="OWNER/NAME on the hub, or a folder or tar")
    add.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: weights/NAME")
    add.add_argument("--diffusion", action="store_true", help="Multi-Band Diffusion too")
    add.set_defaults(run=pull)

    add = commands.add_parser("convert", help="upstream's format to safetensors, which load fast")
    add.add_argument("source", type=Path, metavar="SRC")
    add.add_argument("folder", type=Path, metavar="DIR")
    add.set_defaults(run=convert)

    add = commands.add_parser("verify", help="check hashes, dtypes, shapes; generate two seconds")
    add.add_argument("folder", type=Path, nargs="?", metavar="DIR")
    add.set_defaults(run=verify)

    options = parser.parse_args(arguments)
    options.run(options)


def pull(options: argparse.Namespace) -> None:
    from musicgen.checkpoints.pull import checkpoint_name
    from musicgen.checkpoints.pull import pull as fetch

    folder = options.folder or folders.WEIGHTS / checkpoint_name(options.model)
    manifest = fetch(options.model, folder, diffusion=options.diffusion)
    _say_written(manifest, folder)


def convert(options: argparse.Namespace) -> None:
    from musicgen.checkpoints.convert import convert

    _say_written(convert(options.source, options.folder), options.folder)


def verify(options: argparse.Namespace) -> None:
    from musicgen.commands.verify import verify

    folder = folders.resolve(options.folder)
    for line in verify(folder):
        print(line, flush=True)
    print(f"{folder} is good.")


def _say_written(manifest: Manifest, folder: Path) -> None:
    size = sum(facts.bytes for facts in manifest.files.values())
    print(f"Wrote {manifest.name} to {folder}: {size / 1e9:.2f} GB in {len(manifest.files)} files.")
    for source in manifest.sources:
        print(f"  {source.name}: licence {source.licence}")
    print(f"Check it with: scripts/weights verify {folder}")
