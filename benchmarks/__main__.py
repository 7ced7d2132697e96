"""scripts/bench: measure this engine's decoding speed beside other implementations."""

import argparse
import functools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.gpu_plan import prediction
from benchmarks.gpu_plan.cards import GPUS, this_cpu
from benchmarks.gpu_plan.fastest_step import fastest_step
from benchmarks.machine import Bandwidth, PeakMemory
from benchmarks.measure import Method, choose_method, measure
from benchmarks.report import Record
from benchmarks.systems import SYSTEMS, StateDict, SystemAbsentError
from benchmarks.work import CONFIGS, MAX_SECONDS, Storage, Work, random_state_dict
from musicgen.decoder.kernels import compiler

PLANNED_BATCHES = [1, 8, 32]  # clips, the default with --plan


def main() -> None:
    """Measure the systems one after another; print a table, then one line of JSON."""
    options = parse(sys.argv[1:])
    if options.table:
        print(report.markdown())
        return
    if options.plan:
        plan(options)
        return
    if options.parity:
        from benchmarks import parity  # needs audiocraft

        parity.main(options.parity, options.seed)
        return
    if options.audio:
        from benchmarks import audio  # the only part that needs ffmpeg

        audio.main(options.repeats)
        return
    if options.precision:
        from benchmarks import precision  # needs the whole pipeline

        precision.main()
        return
    if options.first_sound:
        from benchmarks import first_sound  # needs a server

        first_sound.main(options.callers or [1], options.weights, round(options.seconds))
        return
    if options.callers:
        from benchmarks import callers  # the only part that needs a server and audio files

        callers.main(options.callers, options.weights, options.requests, options.seed)
        return
    # Warnings of the baselines' libraries; a user of this command can do nothing about them.
    warnings.simplefilter("ignore")
    document = run(options)
    print(report.table(document))
    if options.save:
        print(f"saved {report.save(document)}")
    print(json.dumps(document))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options, with `device` resolved."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--model", choices=CONFIGS, default="small")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="audio per clip")
    parser.add_argument("--batch", type=int, nargs="+", help="numbers of clips decoded together")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="the median of these is reported")
    parser.add_argument("--steps", type=int, help="steps per repeat, at each of three contexts")
    parser.add_argument("--full", action="store_true", help="time every step of the clip instead")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--callers", type=int, nargs="+", help="measure a real server with so many callers instead"
    )
    parser.add_argument(
        "--first-sound",
        action="store_true",
        help="measure instead when the first piece of a streamed clip comes, with --callers (1), "
        "clips of --seconds and --weights",
    )
    parser.add_argument(
        "--audio", action="store_true", help="measure the loading of audio files instead"
    )
    parser.add_argument(
        "--weights", type=Path, help="with --callers or --first-sound: the checkpoint to serve"
    )
    parser.add_argument("--requests", type=int, default=32, help="with --callers")
    parser.add_argument(
        "--seed", type=int, default=0, help="with --callers or --parity: draws the requests"
    )
    parser.add_argument(
        "--parity", type=int, help="compare this many random generations with audiocraft instead"
    )
    parser.add_argument(
        "--precision",
        action="store_true",
        help="compare the next-code distributions of the fast and the exact mode instead",
    )
    parser.add_argument(
        "--plan",
        nargs="+",
        choices=[*GPUS, "cpu"],
        help="predict a decode step on these GPUs; needs none of them. cpu: predict a step on this "
        "CPU and measure it, to check the prediction",
    )
    parser.add_argument(
        "--no-melodies",
        dest="melodies",
        action="store_false",
        help="for melody models: decode clips without a melody",
    )
    parser.add_argument("--save", action="store_true", help="save the JSON in benchmarks/results/")
    parser.add_argument(
        "--table", action="store_true", help="only print the saved results as a Markdown table"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= MAX_SECONDS:
        parser.error(f"--seconds must be within 1 .. {MAX_SECONDS:g}, one window of the model")
    options.batch = options.batch or (PLANNED_BATCHES if options.plan else [1])
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def run(options: argparse.Namespace) -> Record:
    """Returns the document of a whole run."""
    device = torch.device(options.device)
    load = machine.load_average()
    bandwidth = machine.bandwidth(device)
    machine.release()
    work = Work(options.model, options.seconds, max(options.batch), device, options.melodies)
    method = choose_method(work, repeats=options.repeats, chunk=options.steps, full=options.full)
    state = random_state_dict(work.config)
    records = [
        run_system(name, work.with_batch(batch), state, method, bandwidth)
        for batch in options.batch
        for name in options.only
    ]
    return report.document(work, method, bandwidth, load, records)


def plan(options: argparse.Namespace) -> None:
    """Print the predicted steps, then one line of JSON."""
    if compiler.triton is None:
        if "TRITON_INTERPRET" in os.environ:
            raise SystemExit("--plan needs Triton, because it records Triton's launches")
        # Without a GPU, Triton is only imported if TRITON_INTERPRET is set at process start.
        os.environ["TRITON_INTERPRET"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    gpus = [name for name in options.plan if name in GPUS]
    predictions = prediction.predict_gpus(gpus, options.model, options.batch, options.melodies)
    if gpus:
        print(prediction.table(predictions))
    if "cpu" in options.plan:
        for batch in options.batch:
            predictions.append(plan_this_cpu(options, batch))
    print(json.dumps([one.record() for one in predictions]))


def plan_this_cpu(options: argparse.Namespace, batch: int) -> prediction.Prediction:
    """Predict a step on this CPU, and print it beside the measured one."""
    cpu = torch.device("cpu")
    work = Work(options.model, MAX_SECONDS, batch, cpu, options.melodies)
    measured = fastest_step(work)
    predicted = prediction.predict(work, this_cpu(2 * batch), Storage(weight=2, cache=4))
    print(prediction.compare_on_cpu(predicted, measured), flush=True)
    return predicted


def run_system(
    name: str, work: Work, state: StateDict, method: Method, bandwidth: Bandwidth
) -> Record:
    """Build, measure and free one system. A system that cannot run has a record with the reason."""
    print(f"{name}, batch {work.batch} ...", file=sys.stderr, flush=True)
    try:
        if work.device.type == "cpu":
            run_once(name, work.tiny())
        memory = PeakMemory(work.device)
        system = SYSTEMS[name](work, state)
        timing = measure(system, work, method)
        return report.measured(name, work, system, timing, bandwidth, memory.bytes())
    except (SystemAbsentError, ImportError) as exc:
        return report.missing(name, work, report.ABSENT, str(exc))
    except torch.OutOfMemoryError as exc:  # smaller batches and other systems may still fit
        return report.missing(name, work, report.FAILED, str(exc)[:300])
    except Exception as exc:
        if name in report.MODES:
            raise
        # A baseline's compiler or allocator may raise anything; the other systems still run.
        return report.missing(name, work, report.FAILED, f"{type(exc).__name__}: {str(exc)[:300]}")
    finally:
        torch.compiler.reset()


@functools.cache
def run_once(name: str, work: Work) -> None:
    """Decode a little, so that later memory figures do not include the libraries' imports."""
    system = SYSTEMS[name](work, random_state_dict(work.config))
    measure(system, work, choose_method(work, repeats=1, chunk=1))


if __name__ == "__main__":
    main()
