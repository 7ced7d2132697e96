"""Stage: the difference of every kernel from its reference, and the time to compile it."""

import time
from collections.abc import Callable

import torch

from benchmarks.gpu_report.stage import Setting
from benchmarks.work import CONFIGS
from musicgen.decoder import cuda, kernels
from musicgen.decoder.kernels import Ops

ROWS = (2, 4, 8, 16, 32, 64)


def run(setting: Setting) -> None:
    """Record the differences of all operations, for each model and number of rows."""
    cuda.configure_backends()
    ops = setting.ops or kernels.triton_ops(torch.cuda.get_device_capability(setting.device))
    dtype = torch.float32 if setting.tiny else torch.float16
    for model in setting.models:
        config = CONFIGS[model]
        shape = kernels.Shape(config.dim, config.ffn_dim, config.head_dim, config.n_q * config.card)
        for rows in ROWS:
            name = f"{model}, {rows} rows"
            if setting.recorder.needs(name):
                found = compare(ops, setting.device, dtype, shape, rows)
                ok = all(isinstance(e, float) and e <= 1 for e in found["errors"].values())
                setting.recorder.add(name, ok=ok, ops=kernels.describe(ops), **found)


def compare(
    ops: Ops, device: torch.device, dtype: torch.dtype, shape: kernels.Shape, rows: int
) -> dict[str, dict[str, float | str]]:
    """Returns errors relative to the allowed ones, or an exception's text, and first-call seconds.

    An operation that fails does not prevent the others from being compared.
    """
    ours = kernels.trials(ops, device, dtype, shape, rows)
    theirs = kernels.trials(kernels.TORCH, device, dtype, shape, rows)
    errors: dict[str, float | str] = {}
    seconds: dict[str, float | str] = {}
    for name, trial in ours.items():
        start = time.perf_counter()
        errors[name] = relative_error(trial, theirs[name], dtype)
        seconds[name] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    try:
        kernels.check_sample(ops, kernels.TORCH, device, dtype, rows)
        errors["sample"] = 0.0
    except Exception as exc:
        errors["sample"] = repr(exc)[:300]
    seconds["sample"] = round(time.perf_counter() - start, 3)
    return {"errors": errors, "seconds": seconds}


def relative_error(
    trial: Callable[[], torch.Tensor], reference: Callable[[], torch.Tensor], dtype: torch.dtype
) -> float | str:
    """Returns the largest error divided by the allowed one, or the text of an exception."""
    try:
        error, allowed = kernels.difference(trial(), reference(), dtype)
        return error / allowed
    except Exception as exc:  # a compiler may raise any exception
        return repr(exc)[:300]
