"""audiocraft's decoder: the baseline of the benchmarks, and the reference of parity and tests."""

from typing import Any

import torch
from torch import Tensor, nn

from musicgen.decoder.weights import LMConfig

GUIDANCE = 3.0


def audiocraft_lm(config: LMConfig, conditions: nn.Module, **options: Any) -> Any:
    """Returns an LMModel of this shape, configured like the published checkpoints.

    `conditions` makes the conditions of "description". `options` are arguments of LMModel, such as
    a dtype.
    """
    from musicgen.rendering.audiocraft import ConditionFuser, DelayedPatternProvider, LMModel

    fuse: dict[str, list[str]] = {"sum": [], "cross": [], "prepend": [], "input_interpolate": []}
    fuse["cross" if config.cross_attention else "prepend"].append("description")
    lm = LMModel(
        DelayedPatternProvider(config.n_q, delays=list(config.delays)),
        conditions,
        ConditionFuser(fuse),
        n_q=config.n_q,
        card=config.card,
        dim=config.dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        hidden_scale=config.ffn_dim // config.dim,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        cfg_coef=GUIDANCE,
        dropout=0.0,
        activation="gelu",
        causal=True,
        custom=False,
        memory_efficient=True,
        cross_attention=config.cross_attention,
        **options,
    )
    return lm.eval().requires_grad_(False)


class FixedConditions(nn.Module):
    """Replaces audiocraft's conditioners: the same conditions for every clip, whatever its text.

    `both` [2 B, L, dim] has the conditional rows of all clips, then the unconditional ones.
    """

    def __init__(self, both: Tensor) -> None:
        super().__init__()
        self.both = both

    def tokenize(self, attributes: list[Any]) -> list[Any]:
        return attributes

    def forward(self, attributes: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns the conditions and their mask."""
        return {"description": (self.both, torch.ones_like(self.both[..., 0]))}
