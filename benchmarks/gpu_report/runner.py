"""Runs the stages of the report as processes with time limits, and survives all of their ends.

Exit codes: 0 every stage is done and shows no fault; 1 a fault: a wrong result, or a stage that
failed or exceeded its limit; 2 incomplete: stages were skipped for lack of time, or the GPU was
lost; 3 there is no usable device.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report import summary
from benchmarks.gpu_report.record import DONE, FAILED, LOST, SKIPPED, TIMEOUT, Report
from benchmarks.gpu_report.stages import BASE_SECONDS, BY_NAME, STAGES, Stage

ROOT = Path(__file__).resolve().parents[2]
LOG = "log.txt"
PROBE_SECONDS = 60
GRACE_SECONDS = 5  # between SIGTERM and SIGKILL, and kept for the summary
MODELS = ["stereo-melody-large", "small"]
PROBE = "import sys, torch; torch.zeros(1, device=sys.argv[1]).item()"


def main() -> None:
    """Run the report and exit with its code."""
    options = parse(sys.argv[1:])
    # Stages are ended by SIGTERM; this process ends its stage first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="scripts/gpu-report", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-report")
    parser.add_argument(
        "--seconds", type=float, default=1800, help="limit of the whole report (default: 1800)"
    )
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--only", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument(
        "--resume", action="store_true", help="keep the results in --out; run what is missing"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run with tiny models"
    )
    parser.add_argument("--save", action="store_true", help="save results in benchmarks/results/")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Run all stages that are left and fit the time; returns the exit code."""
    end = time.monotonic() + options.seconds
    report = Report(options.out)
    if not options.resume:
        report.path.unlink(missing_ok=True)
    if not works(options.device, end):
        print(f"scripts/gpu-report: PyTorch finds no usable {options.device} device", flush=True)
        return 3
    ended = report.ends()
    for stage in STAGES:
        if stage.name in options.only and ended.get(stage.name) != DONE:
            how = run_stage(stage, options, report, end)
            if how in (FAILED, TIMEOUT) and not works(options.device, end):
                report.add(stage.name, end=LOST, reason="the device no longer works")
                break
    print(summary.text(report), flush=True)
    for path in summary.save(report, options.out, options.save):
        print(f"saved {path}")
    return summary.exit_code(report, options.only)


def run_stage(stage: Stage, options: argparse.Namespace, report: Report, end: float) -> str:
    """Run one stage until it ends or reaches its limit; returns and records how it ended."""
    left = end - time.monotonic() - GRACE_SECONDS
    limit = min(left, stage.seconds * max(1.0, options.seconds / BASE_SECONDS))
    if left < stage.least:
        report.add(stage.name, end=SKIPPED, reason=f"{max(left, 0):.0f} s left")
        return SKIPPED
    print(f"--- {stage.name}: {stage.question} (at most {limit:.0f} s)", flush=True)
    arguments = ["--out", options.out, "--device", options.device, "--model", *options.model]
    started = time.monotonic()
    with (options.out / LOG).open("a") as log:
        log.write(f"--- {stage.name}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_report.stage", stage.name, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment(options.device), **stage.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            how = DONE if code == 0 else FAILED
        except subprocess.TimeoutExpired:
            how, code = TIMEOUT, None
        finally:
            end_group(process)
    report.add(stage.name, end=how, code=code, seconds=round(time.monotonic() - started, 1))
    print(f"    {how}, {time.monotonic() - started:.0f} s", flush=True)
    return how


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a stage with all its children."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def works(device: str, end: float) -> bool:
    """Returns whether a new process can use the device."""
    left = end - time.monotonic() - GRACE_SECONDS
    if left < GRACE_SECONDS:
        return True  # not known, and no stage will be started
    try:
        subprocess.run(
            [sys.executable, "-c", PROBE, device], check=True, timeout=min(PROBE_SECONDS, left)
        )
    except subprocess.TimeoutExpired:
        return left < PROBE_SECONDS
    except subprocess.CalledProcessError:
        return False
    return True


def environment(device: str) -> dict[str, str]:
    """Returns the variables of a stage: this repository can be imported, CPU threads are few."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    return {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **threads}
