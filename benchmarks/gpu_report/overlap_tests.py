"""Stage: codes with overlapping launches. They may hang: a process of its own, and late."""

from benchmarks.gpu_report import engine_tests
from benchmarks.gpu_report.stage import Setting


def run(setting: Setting) -> None:
    """Run only the test of overlapping launches."""
    engine_tests.run(setting, "overlapping")
