"""What an error means for the process: there was no memory left, or it cannot compute any more."""

import logging
import os
from typing import NoReturn

import torch

CANNOT_COMPUTE = 70  # exit code, EX_SOFTWARE of sysexits.h
# Messages of allocators, in lower case. PyTorch has no exception class for the CPU; CUDA libraries
# report failed allocations of their own, such as CUBLAS_STATUS_ALLOC_FAILED.
EXHAUSTED = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "allocation_failed",
)

logger = logging.getLogger(__name__)


def is_exhausted(exc: BaseException) -> bool:
    """Whether an exception says that there was no memory left."""
    if isinstance(exc, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(exc, RuntimeError) and any(text in str(exc).lower() for text in EXHAUSTED)


def end_process(reason: str) -> NoReturn:
    """End the process at once, so that a supervisor replaces it.

    It would stay ready and fail all requests; nothing in it is worth waiting for.
    """
    logger.critical("%s; the process ends", reason)
    os._exit(CANNOT_COMPUTE)
