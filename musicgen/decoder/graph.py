"""Runs a function of static tensors as one CUDA graph, whatever the function computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Uncaptured runs before a capture. Libraries and kernels set themselves up in their first run, and
# a graph cannot hold that.
WARM_UPS = 2


class Graphed:
    """A `function` without arguments or result that works in place on static tensors.

    The first call captures it; this and later calls replay the capture, which is one launch for
    the whole function. The function must not wait for the device, must not branch on the contents
    of a tensor, and its tensors must keep their addresses. With `eager`, each call runs the
    function itself; off CUDA only that works.

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
        if self.eager:
            self.function()
            return
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self.changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.function()
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(self.changed, before, strict=True):
            tensor.copy_(value)

        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may decode or encode audio on the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.function()
        return graph
