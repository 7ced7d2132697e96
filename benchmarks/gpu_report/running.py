"""Engines for the stages: with random weights, and with clips that are decoding."""

import torch

from benchmarks.gpu_report.stage import Setting
from benchmarks.work import Work, random_state_dict
from musicgen.decoder.clip import Clip, Conditions
from musicgen.decoder.engine import Engine
from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import Sampling


def random_lm(work: Work) -> LM:
    """Returns a decoder with random float16 weights."""
    state = random_state_dict(work.config)
    return LM.from_audiocraft(work.config, state, device=work.device, dtype=torch.float16)


def make_engine(lm: LM, work: Work, setting: Setting, slots: int, ops: Ops | None = None) -> Engine:
    """Returns a warm engine with captured steps; in a dry run they are not captured."""
    shared = torch.zeros(work.melody_length, work.config.dim) if work.melody_length else None
    engine = Engine(
        lm,
        max_length=work.frames,
        stride=max(1, work.frames // 2),
        slots=slots,
        max_prefix=max(work.prefix_length, work.cross_length),
        shared_prefix=shared,
        capture=True,
        eager=setting.tiny,
        ops=ops or setting.ops,
    )
    engine.warm_up()
    return engine


def make_clip(work: Work, seed: int, frames: int | None = None) -> Clip:
    """Returns a clip of `frames` frames, by default as long as the work's."""
    condition = work.condition().to(work.device)
    both = torch.stack([condition, torch.zeros_like(condition)])
    given = Conditions(prefix=both, shared=work.shared_prefix)
    if work.cross_length:
        given = Conditions(cross=both)
    return Clip(frames or work.frames, seed, Sampling(), [given])


def start_clips(engine: Engine, work: Work, count: int) -> None:
    """Submit clips, and step until all of them decode."""
    jobs = [engine.submit(make_clip(work, seed)) for seed in range(count)]
    while not all(job.done_steps for job in jobs):
        engine.step()
        for job in jobs:
            if job.done():
                job.result()  # raises the error of a failed step
