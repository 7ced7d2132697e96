"""Stage: the GPU tests of the engine, one result per test."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.gpu_report.record import Recorder
from benchmarks.gpu_report.stage import Setting

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "decoder" / "gpu"
# The kernels are a stage of their own, overlapping launches too; fp16 needs audiocraft.
CHOSEN = "not kernels_build and not overlapping and not fp16 and not without_gpu"
TEST_SECONDS = 60


def run(setting: Setting, chosen: str = CHOSEN) -> None:
    """Record the outcome of each test; a failed test is a fault, and fails the stage."""
    if run_tests(setting.recorder, FOLDER, chosen):
        raise SystemExit(1)


def run_tests(recorder: Recorder, folder: Path, chosen: str) -> int:
    """Run tests with nothing but pytest, and pytest-timeout if it is installed."""
    arguments = ["-c", "/dev/null", "--rootdir", str(folder), "--confcutdir", str(folder)]
    arguments += ["-p", "no:cacheprovider", "-W", "default", "-v", "-k", chosen, str(folder)]
    if importlib.util.find_spec("pytest_timeout"):
        arguments += ["-p", "pytest_timeout", f"--timeout={TEST_SECONDS}"]
    return int(pytest.main(arguments, plugins=[Outcomes(recorder)]))


class Outcomes:
    """A pytest plugin that records each test as it ends."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a test's call, or the phase before it that failed or skipped it."""
        if report.when != "call" and report.passed:
            return
        reason = report.longreprtext[-2000:] if report.failed else ""
        self.recorder.add(
            report.nodeid.rpartition("/")[2],
            ok=not report.failed,
            outcome=report.outcome,
            seconds=round(report.duration, 2),
            reason=reason,
        )
