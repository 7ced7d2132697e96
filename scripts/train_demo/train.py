"""The command: trains the codec's bands, its decoder and the language model in turn, then writes
the checkpoint."""

import argparse
import csv
from pathlib import Path

from musicgen.checkpoints import folders
from train_demo import codec, lm
from train_demo.export import export
from train_demo.run import LOSSES

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = codec.STEPS | {"lm": lm.STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/train_demo/train",
        description="Train the demo checkpoint; goes on where an earlier run stopped.",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "train_demo")
    parser.add_argument("--output", type=Path, default=folders.DEFAULT)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    options = parser.parse_args()
    work, device = options.work, options.device
    steps = {name: getattr(options, f"{name}_steps") for name in STEPS}
    encodec = codec.train(work, steps, device)
    demo = lm.train(work / "lm", encodec, steps["lm"], device)
    export(encodec.cpu(), demo.cpu(), options.output)
    plot(work, options.output / "losses.png")


def plot(work: Path, path: Path) -> None:
    """Draw the losses of each training."""
    from matplotlib.figure import Figure

    figure = Figure((14, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(STEPS)), STEPS, strict=True):
        rows = list(csv.DictReader((work / name / LOSSES).read_text().splitlines()))
        for column in (column for column in rows[0] if column not in ("step", "si_sdr")):
            points = [(int(row["step"]), float(row[column])) for row in rows]
            axes.plot(*zip(*points, strict=True), label=column.replace("_", " "))
        axes.set(title=name, xlabel="step", ylabel="loss")
        axes.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
