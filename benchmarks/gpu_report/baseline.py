"""Stage: one baseline on one model, for a factor to quote."""

from collections.abc import Sequence

from benchmarks.__main__ import run_system
from benchmarks.gpu_report.stage import Setting
from benchmarks.measure import choose_method
from benchmarks.work import random_state_dict


def run(setting: Setting) -> None:
    """Measure transformers with one clip of the last model, the smallest."""
    measure_baselines(setting, setting.models[-1:], ["transformers"], [1])


def measure_baselines(
    setting: Setting, models: Sequence[str], names: Sequence[str], batches: Sequence[int]
) -> None:
    """Record each baseline with each model and number of clips; a missing one is no fault."""
    bandwidth = None
    for model in models:
        state = None
        for batch in batches:
            for name in names:
                title = f"{model}, {batch} clips, {name}"
                if not setting.recorder.needs(title):
                    continue
                bandwidth = bandwidth or setting.bandwidth()
                work = setting.work(model, batch)
                state = state or random_state_dict(work.config)
                method = choose_method(work, repeats=2, chunk=2 if setting.tiny else 16)
                record = run_system(name, work, state, method, bandwidth)
                setting.recorder.add(title, model=model, **record)
