"""Stage: the slots that the server would reserve, and a clip for which there is no memory."""

import torch

from benchmarks import machine
from benchmarks.gpu_report.running import make_clip, make_engine, random_lm
from benchmarks.gpu_report.stage import Setting
from musicgen.decoder.slots import slots_that_fit

TOKENS = 128  # positions of the text in a slot, as in the server
LEFT_BYTES = 300e6  # free memory while the last clip is submitted
BLOCK = 64 << 20  # bytes


def run(setting: Setting) -> None:
    """Record memory after each step of the start; then fill the GPU, and decode on."""
    work = setting.work(setting.models[0], 1)
    before = free(setting)
    lm = random_lm(work)
    loaded = free(setting)
    prefix = TOKENS + work.melody_length
    slots = 2 if setting.tiny else slots_that_fit(lm, loaded, work.frames, prefix, shared=True)
    engine = make_engine(lm, work, setting, slots)
    warm = free(setting)
    setting.recorder.add(
        "slots", slots=slots, model_bytes=before - loaded, engine_bytes=loaded - warm, free=warm
    )
    jobs = [engine.submit(make_clip(work, seed, frames=8)) for seed in range(2)]
    filled = fill(setting)
    left = free(setting)
    while engine.busy:
        engine.step()
    outcomes = [repr(job.exception()) for job in jobs]
    del filled
    machine.release()
    [codes] = engine.generate([make_clip(work, 0, frames=8)])
    works = codes.shape[-1] == 8
    setting.recorder.add("nearly full", ok=works, free=left, outcomes=outcomes)


def free(setting: Setting) -> int:
    """Returns the free bytes of the GPU; 0 in a dry run."""
    if setting.tiny:
        return 0
    machine.synchronize(setting.device)
    return int(torch.cuda.mem_get_info(setting.device)[0])


def fill(setting: Setting) -> list[torch.Tensor]:
    """Returns tensors that take all memory but LEFT_BYTES."""
    blocks = []
    while free(setting) > LEFT_BYTES + BLOCK:
        blocks.append(torch.empty(BLOCK, dtype=torch.uint8, device=setting.device))
    return blocks
