"""The graph wrapper off CUDA; what it captures is tested in tests/gpu."""

import torch

from musicgen.decoder.graph import Graphed


def test_eager_just_calls():
    counter = torch.zeros(())
    step = Graphed(lambda: counter.add_(1), changed=[counter], eager=True)
    for _ in range(3):
        step()
    assert counter.item() == 3
    assert step.graph is None
