"""Runs a function of static tensors as one CUDA graph, whatever the function computes."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from musicgen.decoder import cuda, faults

# Uncaptured runs before a capture. Libraries and kernels set themselves up in their first run, and
# a graph cannot hold that.
WARM_UPS = 2

logger = logging.getLogger(__name__)


class Graphed:
    """A `function` without arguments or result that works in place on static tensors.

    The first call captures it; this and later calls replay the capture, which is one launch for
    the whole function. The function must not wait for the device, must not branch on the contents
    of a tensor, and its tensors must keep their addresses. With `eager`, each call runs the
    function itself; off CUDA only that works. If the capture fails although the CUDA context still
    works, an error is logged and the calls become eager.

    `changed` are the tensors that the function changes. Their values are restored after the runs
    that precede the capture.
    """

    def __init__(
        self,
        function: Callable[[], None],
        *,
        changed: Sequence[Tensor] = (),
        eager: bool = False,
    ) -> None:
        self.function = function
        self.changed = changed
        self.eager = eager
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None and not self.eager:
            self._try_capture()
        if self.graph is None:
            self.function()
        else:
            self.graph.replay()

    def _try_capture(self) -> None:
        """Capture the function; become eager if that fails."""
        before = [tensor.clone() for tensor in self.changed]
        try:
            self.graph = self._capture()
        except RuntimeError as exc:
            if faults.is_exhausted(exc) or not cuda.context_works(torch.device("cuda")):
                raise
            logger.exception("CUDA graph capture failed; decode steps run without graphs (slower)")
            self.eager = True
        for tensor, value in zip(self.changed, before, strict=True):
            tensor.copy_(value)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Run the function for real, then capture it; the captured run changes nothing."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may decode or encode audio on the device meanwhile.
        with torch.cuda.graph(
            graph, stream=cuda.capture_stream(), capture_error_mode="thread_local"
        ):
            self.function()
        return graph
