"""Runs a function of static tensors as one CUDA graph. Knows nothing of what the function does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Before a capture the function runs for real, so that libraries and kernels are set up: what they
# do when they first run is nothing that a graph could hold.
WARM_UPS = 2


class Graphed:
    """`function`, which takes nothing, returns nothing and works in place on static tensors.

    The first call captures it, this and later calls replay the capture: one launch, whatever the
    function is made of. Nothing in it may wait for the device or choose by what a tensor holds,
    and its tensors must stay where they are. `eager` just calls it, which also is the only way
    off CUDA.

    `changed` are the tensors whose values the function moves on: they are put back after the runs
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
        # thread_local: other threads, which may decode or encode audio, are not disturbed.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.function()
        return graph
