"""Stage: the speed with overlapping launches, for one clip and many."""

from benchmarks.gpu_report import speed
from benchmarks.gpu_report.stage import Setting


def run(setting: Setting) -> None:
    """Measure the first model with the first two numbers of clips."""
    first = Setting(setting.device, setting.models[:1], setting.recorder, setting.folder)
    speed.measure_models(first, setting.batches()[:2])
