"""Stage: decoding while other threads encode, render and cancel, as in a server."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.gpu_report.running import make_clip, make_engine, random_lm
from benchmarks.gpu_report.stage import Setting
from benchmarks.work import Work
from musicgen.decoder import kernels
from musicgen.decoder.job import Job
from musicgen.decoder.lm import LM
from musicgen.decoder.loop import Loop
from musicgen.rendering import pieces
from musicgen.rendering.encodec import Encodec, EncodecConfig

CLIPS = 8
RENDERINGS = 20  # of the same codes, which must be equal
# The published checkpoints' EnCodec: 32 kHz, 50 frames/s.
CODEC = EncodecConfig(
    sample_rate=32000,
    dimension=128,
    n_filters=64,
    n_residual_layers=1,
    ratios=(8, 5, 4, 4),
    kernel_size=7,
    last_kernel_size=7,
    residual_kernel_size=3,
    dilation_base=2,
    causal=False,
    pad_mode="reflect",
    compress=2,
    lstm=2,
    true_skip=True,
    trim_right_ratio=1.0,
    n_q=4,
    bins=2048,
)
TINY_CODEC = replace(CODEC, n_filters=4, dimension=16)


def run(setting: Setting) -> None:
    """Record whether codes and audio are the same as alone, and times alone and together."""
    work = setting.work(setting.models[0], CLIPS)
    codec = random_codec(setting)
    check_rendering(codec, setting)
    lm = random_lm(work)
    check_padding(lm, work, setting)
    loop = Loop(make_engine(lm, work, setting, CLIPS))
    try:
        compare_codes(loop, codec, work, setting)
        setting.recorder.add("first code", ms=first_code(loop, work))
        check_stream(loop, codec, work, setting)
    finally:
        loop.close(wait=True)


def compare_codes(loop: Loop, codec: Encodec, work: Work, setting: Setting) -> None:
    """Decode clips alone, together, and beside other work; record times and whether they agree."""
    alone = [decode(loop, work, [seed])[0][0] for seed in range(2)]
    together, quiet = decode(loop, work, range(CLIPS))
    with ExitStack() as stack:
        for task in (lambda: render(codec, setting), multiply(setting), lambda: cancel(loop, work)):
            stack.enter_context(repeated(task))
        beside, busy = decode(loop, work, range(CLIPS))
    setting.recorder.add(
        "codes",
        ok=all(map(torch.equal, together, beside)) and all(map(torch.equal, alone, together)),
        equal_alone=[torch.equal(*pair) for pair in zip(alone, together, strict=False)],
        equal_beside=[torch.equal(*pair) for pair in zip(together, beside, strict=True)],
        operations=loop.engine.decode_steps.description,
    )
    setting.recorder.add("time", ms_per_step_quiet=quiet, ms_per_step_busy=busy)


def check_padding(lm: LM, work: Work, setting: Setting) -> None:
    """Record whether three clips in a batch of four have the same codes twice, without Triton.

    The fourth place repeats the first clip, and both write to the same rows. The rows of cuBLAS may
    differ in their last bits, so it may matter which of them writes last.
    """
    engine = make_engine(lm, work, setting, 4, kernels.TORCH)
    clips = [make_clip(work, seed, frames=min(work.frames, 100)) for seed in range(3)]
    first, again = (engine.generate(clips) for _ in range(2))
    equal = [torch.equal(*pair) for pair in zip(first, again, strict=True)]
    setting.recorder.add("padding is deterministic without Triton", equal=equal)


def decode(loop: Loop, work: Work, seeds: Iterable[int]) -> tuple[list[Tensor], float]:
    """Returns the codes of clips with these seeds, on the CPU, and milliseconds per step."""
    start = time.perf_counter()
    jobs = [loop.submit(make_clip(work, seed)) for seed in seeds]
    codes = [job.result().cpu() for job in jobs]
    return codes, 1e3 * (time.perf_counter() - start) / work.steps


def first_code(loop: Loop, work: Work) -> float:
    """Returns the median milliseconds of a clip of one frame, while others run."""
    others = [loop.submit(make_clip(work, seed)) for seed in range(CLIPS - 1)]
    found = []
    for seed in range(5):
        start = time.perf_counter()
        job: Job = loop.submit(make_clip(work, seed, frames=1))
        job.result()
        found.append(1e3 * (time.perf_counter() - start))
    for other in others:
        other.cancel()
    return median(found)


def check_stream(loop: Loop, codec: Encodec, work: Work, setting: Setting) -> None:
    """Record whether a clip in pieces, rendered while it decodes beside others, is the whole clip.

    Also the milliseconds until the first piece.
    """
    start = time.perf_counter()
    jobs = [loop.submit(make_clip(work, seed)) for seed in range(CLIPS)]
    found, first = [], 0.0
    rendering = pieces.Rendering(codec, work.frames)
    for span in rendering.spans:
        part = jobs[0].part(span.low, span.high)
        wait([jobs[0], part], return_when=FIRST_COMPLETED)
        codes = part.result() if part.done() else jobs[0].result()[:, span.low : span.high]
        with torch.inference_mode():
            found.append(rendering.render(span, embed(codec, codes)).cpu())
        first = first or 1e3 * (time.perf_counter() - start)
    codes = jobs[0].result()
    with torch.inference_mode():
        whole = pieces.render(codec, embed(codec, codes)).cpu()
    equal = torch.equal(torch.cat(found, dim=-1), whole)
    setting.recorder.add("stream", ok=equal, pieces=len(found), first_piece_ms=first)
    for job in jobs:
        job.cancel()


def embed(codec: Encodec, codes: Tensor) -> Tensor:
    """Returns the embeddings [1, D, T] of codes [K, T], without codebooks of a second channel."""
    return codec.embed(codes[None, : codec.config.n_q])


def random_codec(setting: Setting) -> Encodec:
    """Returns EnCodec with random weights, in a dry run a small one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = Encodec(TINY_CODEC if setting.tiny else CODEC)
    return codec.to(setting.device).eval().requires_grad_(False)


def check_rendering(codec: Encodec, setting: Setting) -> None:
    """Record whether the same codes always give the same audio."""
    first = render(codec, setting)
    equal = [torch.equal(first, render(codec, setting)) for _ in range(RENDERINGS)]
    setting.recorder.add("EnCodec is deterministic", ok=all(equal), equal=sum(equal), of=RENDERINGS)


@torch.inference_mode()
def render(codec: Encodec, setting: Setting) -> Tensor:
    """Returns two seconds of audio, of always the same codes."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(codec.config.bins, (2, codec.config.n_q, 100), generator=random)
    return pieces.render(codec, codec.embed(codes.to(setting.device))).cpu()


def multiply(setting: Setting) -> Callable[[], object]:
    """Returns a task with the matrix products of a text encoder."""
    size = 64 if setting.tiny else 1024
    weight = torch.randn(size, size, device=setting.device)
    return lambda: (weight @ weight).sum().item()


def cancel(loop: Loop, work: Work) -> None:
    """Submit a clip, and cancel it soon afterwards."""
    job = loop.submit(make_clip(work, 99))
    time.sleep(0.01)
    job.cancel()


@contextmanager
def repeated(task: Callable[[], object]) -> Iterator[None]:
    """Run a task in a thread, again and again, until the block ends; raises its exception."""
    stop, errors = threading.Event(), []

    def run_task() -> None:
        try:
            while not stop.is_set():
                task()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run_task)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
    machine.release()
