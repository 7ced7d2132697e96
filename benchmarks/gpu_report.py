"""scripts/gpu-report: what a GPU shows of this engine: its tests, its speed, the plan beside it.

Each model is measured in a process of its own, as `scripts/bench` does it, so that none finds warm
what another has compiled, and one that breaks leaves the others' figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import machine, report
from benchmarks.gpu_plan.cards import DEVICES
from benchmarks.report import MEASURED, OURS, Record
from benchmarks.work import CONFIGS
from musicgen.commands.server import ROOT

TESTS = "tests/decoder/gpu"


def main() -> None:
    """Test, measure, save and print; exits with 1 without a GPU, or if anything failed."""
    options = parse(sys.argv[1:])
    if not torch.cuda.is_available():
        raise SystemExit("scripts/gpu-report: PyTorch sees no CUDA device here")
    card = DEVICES.get(machine.device_name(torch.device("cuda")))
    counts = count_tests(TESTS)
    broken = counts["failed"]
    for model in options.model:
        try:
            document = measured(model, options.batch, "cuda", card)
        except subprocess.CalledProcessError as exc:
            print(f"{model}: {exc}", file=sys.stderr)
            broken += 1
            continue
        print(beside(document))
        print(f"saved {report.save({**document, 'tests': counts})}\n", flush=True)
    print(report.markdown())
    raise SystemExit(bool(broken))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu-report", description=__doc__)
    models = ["small", "stereo-melody-large"]
    parser.add_argument("--model", nargs="+", choices=CONFIGS, default=models)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="clips at once")
    return parser.parse_args(arguments)


def count_tests(folder: str) -> dict[str, int]:
    """How many of the tests passed, failed and were skipped; their output goes to the terminal."""
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "tests.xml"
        command = [sys.executable, "-m", "pytest", folder, f"--junitxml={path}"]
        subprocess.run(command, cwd=ROOT, check=False)
        if not path.exists():  # the process died, as a wrong kernel can make it
            return {"passed": 0, "failed": 1, "skipped": 0}
        [suite] = ElementTree.parse(path).getroot()
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
    }


def measured(
    model: str, batches: Sequence[int], device: str, card: str | None, *further: str
) -> Record:
    """What `scripts/bench` measures, with the plan for the card; none if the card is not known."""
    common = ["--model", model, "--batch", *map(str, batches)]
    plans = bench(*common, "--plan", card) if card else []
    return {**bench(*common, "--device", device, *further), "predicted": plans}


def bench(*options: str) -> Any:
    """What `scripts/bench` ends with; the rest is passed on. Raises CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    *said, last = done.stdout.splitlines()
    print("\n".join(said), flush=True)
    return json.loads(last)


def beside(document: Record) -> str:
    """What was predicted of each batch, next to what was measured."""
    if not document["predicted"]:
        return f"predicted: nothing, benchmarks/cards.py does not know {document['device']}"
    mine = {r["batch"]: r for r in document["results"] if r["system"] == OURS}
    return "\n".join(_line(plan, mine[plan["batch"]]) for plan in document["predicted"])


def _line(plan: Record, result: Record) -> str:
    said = (
        f"predicted for {plan['card']} {plan['ms_per_step']:.2f} ms a step"
        f" ({plan['model']}, {plan['batch']} clips), "
    )
    if result["status"] != MEASURED:
        return f"{said}not measured: {result['reason']}"
    step = result["ms_per_step"]["median"]
    return f"{said}measured {step:.2f} ms: {plan['ms_per_step'] / step - 1:+.0%}"


if __name__ == "__main__":
    main()
