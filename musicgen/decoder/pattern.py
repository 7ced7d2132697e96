"""The delay pattern: the place of each code of [K, T] in the sequence that the decoder reads.

Codebook `q` is delayed by `delays[q]` steps after a first column of special tokens, so frame `t`
of codebook `q` is in column `1 + delays[q] + t`. All other places hold the special token
("Simple and Controllable Music Generation", Copet et al. 2023, section 2.2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def num_columns(frames: int, delays: Sequence[int]) -> int:
    """Columns of the sequence of `frames` frames, including its first column of special tokens."""
    return 1 + frames + max(delays)


def interleave(codes: Tensor, delays: Sequence[int], special_token_id: int) -> Tensor:
    """Codes [K, T] -> sequence [K, 1 + T + max(delays)], in the delay pattern."""
    n_q, frames = codes.shape
    if n_q != len(delays):
        raise ValueError(f"codes have {n_q} codebooks, the delay pattern {len(delays)}")
    sequence = codes.new_full((n_q, num_columns(frames, delays)), special_token_id)
    for q, delay in enumerate(delays):
        sequence[q, 1 + delay : 1 + delay + frames] = codes[q]
    return sequence


def deinterleave(sequence: Tensor, delays: Sequence[int], frames: int) -> Tensor:
    """Sequence [K, S] with S >= 1 + frames + max(delays) -> codes [K, frames]."""
    return torch.stack(
        [sequence[q, 1 + delay : 1 + delay + frames] for q, delay in enumerate(delays)]
    )
