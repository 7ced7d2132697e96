"""The graph wrapper without CUDA; captures are tested in gpu/."""

import torch

from musicgen.decoder.graph import Graphed


def test_eager_calls_the_function():
    counter = torch.zeros(())
    step = Graphed(lambda: counter.add_(1), changed=[counter], eager=True)
    for _ in range(3):
        step()
    assert counter.item() == 3
    assert step.graph is None
