"""The operations of a decode step, one table per backend, all with the same signatures."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from musicgen import sampling

from . import attention, products


@dataclass(frozen=True)
class Ops:
    """What a decode step is made of; the contracts are the docstrings of the PyTorch twins."""

    norm_linear: Callable[..., Tensor]
    norm_qkv: Callable[..., Tensor]
    linear_add: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    sample: Callable[..., Tensor]


# On the CPU: nothing depends on the other rows of the batch, bit for bit.
CPU = Ops(
    norm_linear=products.norm_linear,
    norm_qkv=products.norm_qkv,
    linear_add=products.linear_add,
    attention=attention.attention_each,
    sample=sampling.sample_each,
)

# Everything at once on any device: what CUDA uses where there is no Triton.
TORCH = Ops(
    norm_linear=products.norm_linear,
    norm_qkv=products.norm_qkv,
    linear_add=products.linear_add,
    attention=attention.attention,
    sample=sampling.sample,
)
