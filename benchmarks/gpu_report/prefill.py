"""Stage: prefill at lengths that are new, and the accuracy of PyTorch's attention with a mask."""

import time
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import machine
from benchmarks.gpu_report.running import random_lm
from benchmarks.gpu_report.stage import Setting
from benchmarks.work import Work
from musicgen.decoder import cuda
from musicgen.decoder.lm import LM, Cache

LENGTHS = range(17, 57, 4)  # positions
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def run(setting: Setting) -> None:
    """Record milliseconds of prefill, with cuDNN's attention off and on, and errors by backend."""
    for backend in BACKENDS:
        with suppress(RuntimeError):  # this backend does not support the case
            error = mask_error(backend, setting)
            setting.recorder.add(f"error of {backend.name}", ok=error < 0.01, largest=error)
    work = setting.work(setting.models[0], 1)
    lm = random_lm(work)
    cuda.configure_backends()
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first, again = (prefill_times(lm, work) for _ in range(2))
        setting.recorder.add(
            f"cuDNN attention {'on' if cudnn else 'off'}",
            lengths=list(LENGTHS),
            first_ms=first,
            again_ms=again,
        )


@torch.inference_mode()
def prefill_times(lm: LM, work: Work) -> list[float]:
    """Returns milliseconds of the prefill of one clip, for each length."""
    cache = Cache.empty(lm, 2, 1 + max(LENGTHS), max(1, work.cross_length))
    found = []
    for length in LENGTHS:
        tokens = work.prompt(length).T.to(work.device)
        cross = torch.zeros(2, work.cross_length, work.config.dim, device=work.device)
        machine.synchronize(work.device)
        start = time.perf_counter()
        for _ in lm.prefill(tokens, None, cross if work.cross_length else None, cache):
            pass
        machine.synchronize(work.device)
        found.append(1e3 * (time.perf_counter() - start))
    return found


@torch.inference_mode()
def mask_error(backend: SDPBackend, setting: Setting) -> float:
    """Returns the largest difference of masked attention from float64 on the CPU."""
    random = torch.Generator().manual_seed(0)
    heads, start, length, capacity = 4, 40, 37, 128
    dtype = torch.float32 if setting.tiny else torch.float16
    q = torch.randn(2, heads, length, 64, generator=random).to(dtype)
    keys, values = torch.randn(2, 2, heads, capacity, 64, generator=random).to(dtype).unbind()
    seen = torch.ones(length, start + length, dtype=torch.bool).tril(start)
    keys[:, :, start + length :] = values[:, :, start + length :] = torch.nan  # must not be read

    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        moved_q, moved_keys, moved_values, mask = tensors
        filled = slice(start + length)
        return F.scaled_dot_product_attention(
            moved_q, moved_keys[:, :, filled], moved_values[:, :, filled], attn_mask=mask
        )

    expected = attend(q.double(), keys.double(), values.double(), seen)
    with sdpa_kernel(backend):
        found = attend(*(tensor.to(setting.device) for tensor in (q, keys, values, seen)))
    return float((found.cpu().double() - expected).abs().max())
