"""Stage: all baselines with all models, the most wanted numbers of clips first."""

from benchmarks.gpu_report.baseline import measure_baselines
from benchmarks.gpu_report.stage import Setting
from benchmarks.report import MODES
from benchmarks.systems import SYSTEMS


def run(setting: Setting) -> None:
    """Measure every system but this engine."""
    names = [name for name in SYSTEMS if name not in MODES]
    measure_baselines(setting, setting.models, names, setting.batches())
