"""Triton, imported only where it is useful, and the options of its launches."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

triton: Any = None
tl: Any = None

# Whether a kernel may start before its predecessor has ended (programmatic dependent launch, on
# Hopper and later): it prefetches its first weights, then waits. Not yet run on a GPU.
DEPENDENT = os.environ.get("MUSICGEN_DEPENDENT_LAUNCHES") == "1"
HOPPER = 9  # major compute capability

# TRITON_INTERPRET is Triton's own variable. If it is set, Triton is imported without a GPU too:
# with 1 the kernels run on the CPU, slowly, for tests; with 0 they can be compiled, but not run.
if torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ:
    try:
        triton = importlib.import_module("triton")
        tl = importlib.import_module("triton.language")
    except Exception:  # treat a broken installation as a missing one; `kernels.choose` warns
        triton = tl = None


def jit(function: Callable[..., None] | None = None, **options: Any) -> Any:
    """`triton.jit` with its options, or the function itself without Triton."""
    if function is None:
        return functools.partial(jit, **options)
    return triton.jit(function, **options) if triton else function


def launch(device: torch.device) -> dict[str, bool]:
    """The arguments of every launch: DEPENDENT for `begin`, and Triton's option for it."""
    if not DEPENDENT or device.type == "cpu":
        return {"DEPENDENT": False}
    dependent = torch.cuda.get_device_properties(device).major >= HOPPER
    return {"DEPENDENT": dependent, "launch_pdl": dependent}


@jit
def begin(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Wait for the results of earlier launches; then let the next launch start.

    Before this call a kernel must write nothing, and read only data that no step changes.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
