"""Triton, where there is a use for it; elsewhere the modules beside this one do without it."""

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

triton: Any = None
tl: Any = None

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
