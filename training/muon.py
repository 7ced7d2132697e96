"""Muon (Jordan et al. 2024) in the precision of the gradients.

PyTorch's Muon always computes in bfloat16. On a CPU without bfloat16 multiplication, that takes
three times as long as the rest of a training step.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic iteration
ITERATIONS = 5
EPS = 1e-7


class Muon(Optimizer):
    """Muon for matrices. Updates are as large as AdamW's (Liu et al. 2025), so rates are shared."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, **{key: group[key] for key in self.defaults})

    def _update(self, matrix: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        mean = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        direction = orthogonal(matrix.grad.lerp(mean, momentum))  # Nesterov momentum
        matrix.mul_(1 - lr * weight_decay)
        matrix.sub_(direction, alpha=0.2 * math.sqrt(max(matrix.shape)) * lr)


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns a nearly orthogonal matrix close to `matrix`: all singular values are near 1."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
