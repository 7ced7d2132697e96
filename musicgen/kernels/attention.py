"""Attention of one query per row over the filled part of that row's cache."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Queries [R, H * Dh], caches [R, H, S, Dh], filled up to lengths [R] -> [R, H * Dh].

    Reads the whole cache and masks the rest of it out.
    """
    rows, heads, capacity, head_dim = keys.shape
    filled = torch.arange(capacity, device=q.device) < lengths[:, None]
    y = F.scaled_dot_product_attention(
        q.view(rows, heads, 1, head_dim), keys, values, attn_mask=filled[:, None, None]
    )
    return y.reshape(rows, heads * head_dim)


def attention_each(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """`attention`, clip by clip on its filled slice: for the CPU, where lengths cost no wait.

    Rows 2 i and 2 i + 1 belong to one clip and are of one length.
    """
    rows, heads, _, head_dim = keys.shape
    clips = [
        F.scaled_dot_product_attention(
            q[i : i + 2].view(-1, heads, 1, head_dim),
            keys[i : i + 2, :, :length],
            values[i : i + 2, :, :length],
        )
        for i, length in zip(range(0, rows, 2), lengths[::2].tolist(), strict=True)
    ]
    return torch.cat(clips).reshape(rows, heads * head_dim)
