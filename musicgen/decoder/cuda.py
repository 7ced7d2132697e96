"""CUDA settings of the decoder: backends, streams, events, and a test of the CUDA context."""

import functools

import torch

from musicgen.decoder import faults

HIGH_PRIORITY = -1  # of a stream; the default is 0


def configure_backends() -> None:
    """Choose exact and predictable implementations, for the whole process.

    cuDNN's attention builds an execution plan for every new prompt length (0.4 s each, reported for
    torch 2.11), and its masks were reported to be ineffective (pytorch#177842). cuDNN's default
    algorithms for transposed convolutions are not deterministic.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.deterministic = True


def event() -> torch.cuda.Event:
    """An event for which the host waits asleep, not in a busy loop."""
    return torch.cuda.Event(blocking=True)


def decode_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that precedes other work of the device, and follows the work queued so far."""
    stream = torch.cuda.Stream(device, priority=HIGH_PRIORITY)
    stream.wait_stream(torch.cuda.default_stream(device))
    return stream


@functools.cache
def capture_stream() -> torch.cuda.Stream:
    """The stream of all captures: a graph's kernels keep the priority of its capture stream."""
    return torch.cuda.Stream(priority=HIGH_PRIORITY)


def context_works(device: torch.device) -> bool:
    """Whether the CUDA context still works. After an illegal access, for example, none does."""
    try:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except RuntimeError as exc:
        return faults.is_exhausted(exc)
    return True


def exit_if_context_is_lost(device: torch.device) -> None:
    """End the process if its CUDA context no longer works: every later CUDA call would fail."""
    if device.type == "cuda" and not context_works(device):
        faults.end_process("the CUDA context of this process no longer works")
