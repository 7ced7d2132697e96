"""Triton, where there is a use for it; elsewhere the modules beside this one do without it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

triton: Any = None
tl: Any = None

# Whether a kernel may begin before the one that it depends on has ended (programmatic dependent
# launch, from Hopper on): it brings its first weights, then waits. No GPU has run it yet.
DEPENDENT = os.environ.get("MUSICGEN_DEPENDENT_LAUNCHES") == "1"
HOPPER = 9  # the major compute capability

# TRITON_INTERPRET is Triton's own switch. Set at all, it asks for Triton without a GPU: with 1 the
# kernels run on the CPU, slowly, for tests; with 0 they can be compiled and recorded, not run.
if torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ:
    try:
        triton = importlib.import_module("triton")
        tl = importlib.import_module("triton.language")
    except Exception:  # a broken installation is as good as none: choose() in __init__ warns
        triton = tl = None


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`, or nothing where there is no Triton."""
    return triton.jit(function) if triton else function


def launch(device: torch.device) -> dict[str, bool]:
    """What every launch is given: DEPENDENT for `begin`, and Triton's option where it is true."""
    if not DEPENDENT or device.type == "cpu":
        return {"DEPENDENT": False}
    dependent = torch.cuda.get_device_properties(device).major >= HOPPER
    return {"DEPENDENT": dependent, "launch_pdl": dependent}


@jit
def begin(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """All that earlier launches write is there from here on; only then the next one may begin.

    Whatever is read before must not change in a step; nothing may be written before.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
