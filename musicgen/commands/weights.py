"""The commands of scripts/weights: pull, convert, verify, kernels."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen.checkpoints import folders
from musicgen.commands.options import check_checkpoint, make_parser
from musicgen.decoder.gpus import PROCESSORS

if TYPE_CHECKING:  # it imports torch, which --help does not need
    from musicgen.checkpoints.manifest import Manifest


def main(arguments: list[str]) -> None:
    """Run the subcommand that `arguments` begin with. Raises WeightsError if it fails."""
    parser = make_parser(
        "weights", "Fetch, convert and verify checkpoints; compile their GPU kernels."
    )
    commands = parser.add_subparsers(required=True)

    add = commands.add_parser("pull", help="fetch a model, or what a local one lacks; convert it")
    add.add_argument("model", metavar="MODEL", help="OWNER/NAME on the hub, or a folder or tar")
    add.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: weights/NAME")
    add.add_argument("--diffusion", action="store_true", help="fetch Multi-Band Diffusion too")
    add.set_defaults(run=pull)

    add = commands.add_parser("convert", help="convert audiocraft's format to safetensors")
    add.add_argument("source", type=Path, metavar="SRC", help="checkpoint folder to read")
    add.add_argument("folder", type=Path, metavar="DIR", help="new folder to write")
    add.set_defaults(run=convert)

    add = commands.add_parser("verify", help="check hashes, dtypes, shapes; generate two seconds")
    add.add_argument(
        "folder", type=Path, nargs="?", metavar="DIR", help="default: MUSICGEN_WEIGHTS or the demo"
    )
    add.set_defaults(run=verify)

    add = commands.add_parser("kernels", help="compile a server's GPU kernels, without a GPU")
    add.add_argument(
        "folder", type=Path, nargs="?", metavar="DIR", help="default: MUSICGEN_WEIGHTS or the demo"
    )
    add.add_argument(
        "--gpu", nargs="+", choices=[f"sm_{c}" for c in PROCESSORS], required=True, metavar="SM",
        help=f"CUDA architectures: sm_{', sm_'.join(map(str, PROCESSORS))}",
    )  # fmt: skip
    add.add_argument(
        "--into", type=Path, default=folders.KERNELS, metavar="DIR", help="default: weights/kernels"
    )
    add.set_defaults(run=kernels)

    options = parser.parse_args(arguments)
    options.run(options)


def pull(options: argparse.Namespace) -> None:
    from musicgen.checkpoints.pull import checkpoint_name
    from musicgen.checkpoints.pull import pull as fetch

    folder = options.folder or folders.WEIGHTS / checkpoint_name(options.model)
    manifest = fetch(options.model, folder, diffusion=options.diffusion)
    _print_written(manifest, folder)


def convert(options: argparse.Namespace) -> None:
    from musicgen.checkpoints.convert import convert

    _print_written(convert(options.source, options.folder), options.folder)


def verify(options: argparse.Namespace) -> None:
    folder = check_checkpoint(options.folder) if options.folder else folders.resolve()
    from musicgen.commands.verify import verify

    for line in verify(folder):
        print(line, flush=True)
    print(f"{folder} is good.")


def kernels(options: argparse.Namespace) -> None:
    folder = check_checkpoint(options.folder) if options.folder else folders.resolve()
    # Triton is imported without a GPU only if this variable is set. With 0, kernels are compiled.
    os.environ["TRITON_INTERPRET"] = "0"
    from musicgen.commands.kernels import compile_kernels

    for line in compile_kernels(folder, [int(name[3:]) for name in options.gpu], options.into):
        print(line, flush=True)


def _print_written(manifest: "Manifest", folder: Path) -> None:
    size = sum(facts.bytes for facts in manifest.files.values())
    print(f"Wrote {manifest.name} to {folder}: {size / 1e9:.2f} GB in {len(manifest.files)} files.")
    for source in manifest.sources:
        print(f"  {source.name}: licence {source.licence}")
    print(f"Check it with: scripts/weights verify {folder}")
