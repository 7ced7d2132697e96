"""Stage: microseconds per kernel, and microseconds of the host, of a decode step."""

import time
from collections import defaultdict

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine
from benchmarks.gpu_report.running import make_engine, random_lm, start_clips
from benchmarks.gpu_report.speed import predicted
from benchmarks.gpu_report.stage import Setting
from musicgen.decoder.engine import Engine

STEPS = 5
HOST_STEPS = 16  # below the limit of the host's lead, so that the host never waits
TOP = 25  # kernels


def run(setting: Setting) -> None:
    """Record the profile of the first model's step, for one clip and for many."""
    model = setting.models[0]
    many = setting.batches()[1]
    lm = random_lm(setting.work(model, many))
    for clips in (1, many):
        name = f"{model}, {clips} clips"
        if not setting.recorder.needs(name):
            continue
        work = setting.work(model, clips)
        engine = make_engine(lm, work, setting, clips)
        start_clips(engine, work, clips)
        setting.recorder.add(
            name,
            operations=engine.decode_steps.description,
            host_us_per_step=host_time(engine, setting.device),
            us_per_step=kernel_times(engine, setting.device),
            predicted=predicted(work),
        )
        del engine
        machine.release()


def host_time(engine: Engine, device: torch.device) -> float:
    """Returns the microseconds in which the host queues a step."""
    machine.synchronize(device)
    start = time.perf_counter()
    for _ in range(HOST_STEPS):
        engine.step()
    elapsed = time.perf_counter() - start
    machine.synchronize(device)
    return 1e6 * elapsed / HOST_STEPS


def kernel_times(engine: Engine, device: torch.device) -> dict[str, dict[str, float]]:
    """Returns the longest kernels of a step with their launches and microseconds."""
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(STEPS):
            engine.step()
        machine.synchronize(device)
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if not on_cuda or event.device_type == DeviceType.CUDA:
            found[event.name[:80]].append(event.time_range.elapsed_us())
    longest = sorted(found, key=lambda name: -sum(found[name]))[:TOP]
    return {
        name: {"launches": len(found[name]) / STEPS, "us": sum(found[name]) / STEPS}
        for name in longest
    }
