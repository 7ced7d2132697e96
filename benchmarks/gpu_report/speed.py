"""Stage: milliseconds per decode step of this engine, beside the prediction for the card."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.gpu_plan import prediction
from benchmarks.gpu_plan.cards import DEVICES
from benchmarks.gpu_report.stage import Setting
from benchmarks.machine import PeakMemory
from benchmarks.measure import choose_method, measure
from benchmarks.systems import StateDict, ours
from benchmarks.work import CONFIGS, Work, random_state_dict
from musicgen.decoder.kernels import compiler

REPEATS = 2


def run(setting: Setting) -> None:
    """Record the speed for each model and number of clips."""
    measure_models(setting, setting.batches())


def measure_models(setting: Setting, batches: Sequence[int]) -> None:
    """Record the speed of each model with these numbers of clips."""
    bandwidth = None
    for model in setting.models:
        state = None
        for batch in batches:
            name = f"{model}, {batch} clips"
            if not setting.recorder.needs(name):
                continue
            bandwidth = bandwidth or setting.bandwidth()
            state = state or random_state_dict(CONFIGS[model])
            machine.release()
            record = measured(setting, setting.work(model, batch), state, bandwidth)
            setting.recorder.add(name, **record)


def measured(
    setting: Setting, work: Work, state: StateDict, bandwidth: machine.Bandwidth
) -> dict[str, Any]:
    """Returns the figures of this engine, with the predicted step."""
    chunk = 4 if setting.tiny else 32
    method = choose_method(work, repeats=REPEATS, chunk=chunk)
    memory = PeakMemory(setting.device)
    system = ours(work, state, setting.ops)
    timing = measure(system, work, method)
    found = report.measured("ours", work, system, timing, bandwidth, memory.bytes())
    return {
        **found,
        "model": work.model,
        "bandwidth_gb_per_s": bandwidth.bytes_per_second / 1e9,
        "document": report.document(work, method, bandwidth, machine.load_average(), [found]),
        "predicted": predicted(work),
    }


def predicted(work: Work) -> dict[str, Any] | None:
    """Returns the prediction for this card; None for an unknown card or without Triton."""
    card = DEVICES.get(machine.device_name(work.device))
    if card is None or compiler.triton is None:
        return None
    torch.cuda.synchronize(work.device)
    [plan] = prediction.predict_gpus([card], work.model, [work.batch], work.melodies)
    return plan.record()
