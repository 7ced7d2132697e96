"""scripts/bench: how fast this engine decodes, beside others, and how near to the hardware."""

import argparse
import functools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import callers, machine, parity, report
from benchmarks.gpu_plan import prediction
from benchmarks.gpu_plan.cards import GPUS, this_cpu
from benchmarks.gpu_plan.least import least_step
from benchmarks.machine import Bandwidth, PeakMemory
from benchmarks.measure import Plan, make_plan, measure
from benchmarks.report import Record
from benchmarks.systems import SYSTEMS, Absent, State
from benchmarks.work import CONFIGS, MAX_SECONDS, Storage, Work, random_state
from musicgen.decoder.kernels import compiler

PLANNED = [1, 8, 32]  # clips that a plan is made for


def main() -> None:
    """Run the systems one after another, print a table and, last, one line of JSON."""
    options = parse(sys.argv[1:])
    if options.table:
        print(report.markdown())
        return
    if options.plan:
        plan(options)
        return
    if options.parity:
        parity.main(options.parity, options.seed)
        return
    if options.callers:
        callers.main(options.callers, options.weights, options.requests, options.seed)
        return
    warnings.simplefilter("ignore")  # of the systems' libraries; nobody here can act on them
    warnings.filterwarnings("default", "decoding without Triton")  # but this one explains figures
    document = run(options)
    print(report.table(document))
    if options.save:
        print(f"saved {report.save(document)}")
    print(json.dumps(document))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, `device` resolved."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--model", choices=CONFIGS, default="small")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="of audio in a clip")
    parser.add_argument("--batch", type=int, nargs="+", help="clips at once")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is reported")
    parser.add_argument("--steps", type=int, help="steps to a repeat at each of three contexts")
    parser.add_argument("--full", action="store_true", help="time every step of the clip instead")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--callers", type=int, nargs="+", help="of a real server, and nothing else")
    parser.add_argument("--weights", type=Path, help="with --callers: what it serves")
    parser.add_argument("--requests", type=int, default=32, help="with --callers")
    parser.add_argument(
        "--seed", type=int, default=0, help="with --callers or --parity: of the requests"
    )
    parser.add_argument(
        "--parity", type=int, help="compare this many random generations with audiocraft, only"
    )
    parser.add_argument(
        "--plan",
        nargs="+",
        choices=[*GPUS, "cpu"],
        help="predict a step on GPUs that are not at hand; cpu: and measure it here, to compare",
    )
    parser.add_argument(
        "--no-melodies",
        dest="melodies",
        action="store_false",
        help="of a model that takes melodies, clips that have none",
    )
    parser.add_argument("--save", action="store_true", help="keep the JSON in benchmarks/")
    parser.add_argument("--table", action="store_true", help="print benchmarks/ as Markdown, only")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= MAX_SECONDS:
        parser.error(f"--seconds must be within 1 .. {MAX_SECONDS:g}: one window")
    options.batch = options.batch or (PLANNED if options.plan else [1])
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def run(options: argparse.Namespace) -> Record:
    """The document of a whole run."""
    device = torch.device(options.device)
    load = machine.others_load()
    roof = machine.bandwidth(device)
    machine.release()
    work = Work(options.model, options.seconds, 1, device, options.melodies)
    plan = make_plan(work, repeats=options.repeats, chunk=options.steps, full=options.full)
    state = random_state(work.config)
    records = [
        compete(name, work.with_batch(batch), state, plan, roof)
        for batch in options.batch
        for name in options.only
    ]
    return report.document(work, plan, roof, load, records)


def plan(options: argparse.Namespace) -> None:
    """Print what is predicted and, last, one line of JSON."""
    if compiler.triton is None:
        if "TRITON_INTERPRET" in os.environ:
            raise SystemExit("--plan needs Triton, whose launches it records")
        # Triton is loaded without a GPU only if that is asked for at the start of a process.
        os.environ["TRITON_INTERPRET"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    gpus = [name for name in options.plan if name in GPUS]
    predictions = prediction.of_gpus(gpus, options.model, options.batch, options.melodies)
    if gpus:
        print(prediction.table(predictions))
    if "cpu" in options.plan:
        for batch in options.batch:
            predictions.append(plan_here(options, batch))
    print(json.dumps([one.record() for one in predictions]))


def plan_here(options: argparse.Namespace, batch: int) -> prediction.Prediction:
    """Predict a step of this CPU's, and say what it takes at least when it is measured."""
    cpu = torch.device("cpu")
    work = Work(options.model, MAX_SECONDS, batch, cpu, options.melodies)
    measured = least_step(work)
    predicted = prediction.predict(work, this_cpu(2 * batch), Storage(weight=2, cache=4))
    print(prediction.beside(predicted, measured), flush=True)
    return predicted


def compete(name: str, work: Work, state: State, plan: Plan, roof: Bandwidth) -> Record:
    """Build, measure and forget one system; what keeps it from running is its record."""
    print(f"{name}, batch {work.batch} ...", file=sys.stderr, flush=True)
    try:
        if work.device.type == "cpu":
            rehearse(name, work.tiny())
        memory = PeakMemory(work.device)
        system = SYSTEMS[name](work, state)
        timing = measure(system, work, plan)
        return report.measured(name, work, system, timing, roof, memory.bytes())
    except (Absent, ImportError) as exc:
        return report.missing(name, work, report.ABSENT, str(exc))
    except torch.OutOfMemoryError as exc:  # a large batch on a small card says nothing of others
        return report.missing(name, work, report.FAILED, str(exc)[:300])
    except Exception as exc:
        if name == report.OURS:
            raise
        # Whatever a peer's compiler or allocator may raise: the others still run.
        return report.missing(name, work, report.FAILED, f"{type(exc).__name__}: {str(exc)[:300]}")
    finally:
        torch.compiler.reset()


@functools.cache
def rehearse(name: str, work: Work) -> None:
    """Decode a little, once, so that the memory of what gets imported is not the system's."""
    system = SYSTEMS[name](work, random_state(work.config))
    measure(system, work, make_plan(work, repeats=1, chunk=1))


if __name__ == "__main__":
    main()
