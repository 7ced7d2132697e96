"""training/train: train the codec's bands, its decoder and the language model.

With `--start`, train only the decoder and the language model of an existing demo.
"""

import argparse
import csv
from copy import deepcopy
from pathlib import Path

from musicgen.checkpoints import folders
from training import codec, lm, start
from training.dataset import CLIPS
from training.export import export
from training.run import LOSSES

ROOT = Path(__file__).resolve().parent.parent
STEPS = codec.STEPS | {"lm": lm.STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="training/train",
        description="Train the demo checkpoint. An interrupted run is resumed.",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DEMO",
        help="train the decoder and the language model of this demo further; codes stay the same",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "training")
    parser.add_argument("--output", type=Path, default=folders.DEFAULT)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name, number in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=number)
    parser.add_argument("--lm-rate", type=float, default=lm.RATE)
    parser.add_argument(
        "--clips",
        type=numbers,
        default=f"{CLIPS.start}-{CLIPS.stop}",
        metavar="FIRST-END",
        help="training clips of the language model; default: %(default)s",
    )
    options = parser.parse_args()
    work, device = options.work, options.device
    steps = {name: getattr(options, f"{name}_steps") for name in STEPS}
    if options.start:
        joined, demo = start.read(options.start)
        before = deepcopy(demo)
        encodec = codec.train_decoder(work / "decoder", joined, steps["decoder"], device)
    else:
        encodec, demo = codec.train(work, steps, device), lm.Demo()
    demo = lm.train(
        work / "lm",
        demo,
        encodec,
        device,
        steps=steps["lm"],
        rate=options.lm_rate,
        drawn=options.clips,
    ).cpu()
    if options.start:
        start.average(before, demo)
    export(encodec.cpu(), demo, options.output)
    plot(work, options.output / "losses.png")


def numbers(text: str) -> range:
    """Returns the range of a text such as "2-5": 2, 3 and 4."""
    first, end = (int(number) for number in text.split("-"))
    return range(first, end)


def plot(work: Path, path: Path) -> None:
    """Plot the losses of each training."""
    from matplotlib.figure import Figure

    tables = {name: table for name in STEPS if (table := work / name / LOSSES).exists()}
    figure = Figure((3.5 * len(tables), 3.5), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables)), tables.items(), strict=True):
        rows = list(csv.DictReader(table.read_text().splitlines()))
        for column in (column for column in rows[0] if column not in ("step", "si_sdr")):
            points = [(int(row["step"]), float(row[column])) for row in rows]
            axes.plot(*zip(*points, strict=True), label=column.replace("_", " "))
        axes.set(title=name, xlabel="step", ylabel="loss")
        axes.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
