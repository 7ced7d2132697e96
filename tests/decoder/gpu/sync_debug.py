"""Makes waiting for the GPU an error."""

import warnings
from contextlib import contextmanager

import torch


@contextmanager
def waiting_is_an_error():
    """Inside, an operation that waits for the GPU raises RuntimeError."""
    try:
        with warnings.catch_warnings():
            # "Synchronization debug mode is a prototype feature". If this warning were an error,
            # it would be raised after the mode has been set.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
