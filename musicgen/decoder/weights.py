"""A decoder's weights: the keys and shapes of audiocraft's state, and where each weight goes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from musicgen.decoder.kernels.products import Weight
from musicgen.decoder.kernels.products import is_float16 as is_float16


@dataclass(frozen=True)
class LMConfig:
    """The shape of a decoder."""

    dim: int
    num_heads: int
    num_layers: int
    ffn_dim: int
    n_q: int
    card: int
    delays: tuple[int, ...]
    cross_attention: bool

    @property
    def special_token_id(self) -> int:
        return self.card

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class Placement:
    """The device and form of loaded weights."""

    device: torch.device
    dtype: torch.dtype  # of tensors; packed weights have their own
    cache_dtype: torch.dtype  # of keys and values
    pack: Callable[[Tensor], Weight] | None

    def product(self, weight: Tensor) -> Weight:
        """The matrix of a product."""
        if self.pack:
            return self.pack(weight)
        return nn.Parameter(weight.to(self.device, self.dtype), requires_grad=False)

    def wide(self, weight: Tensor) -> nn.Parameter:
        """A weight that is float32 on every device."""
        return nn.Parameter(weight.to(self.device, torch.float32), requires_grad=False)

    def norm(self, state: Mapping[str, Tensor], name: str) -> nn.LayerNorm:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        norm = nn.LayerNorm(len(weight), device="meta")
        norm.weight, norm.bias = self.wide(weight), self.wide(bias)
        return norm


def decoder_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """The decoder keys of an audiocraft LMModel of this shape, with the shapes of their tensors."""
    d = config.dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.in_proj_weight": (3 * d, d),
        "self_attn.out_proj.weight": (d, d),
        "linear1.weight": (config.ffn_dim, d),
        "linear2.weight": (d, config.ffn_dim),
        **_norm_shapes("norm1", d),
        **_norm_shapes("norm2", d),
    }
    if config.cross_attention:
        layer |= {
            "cross_attention.in_proj_weight": (3 * d, d),
            "cross_attention.out_proj.weight": (d, d),
            **_norm_shapes("norm_cross", d),
        }
    books, layers = range(config.n_q), range(config.num_layers)
    return {
        **{f"emb.{k}.weight": (config.card + 1, d) for k in books},
        **{f"transformer.layers.{i}.{key}": shape for i in layers for key, shape in layer.items()},
        **_norm_shapes("out_norm", d),
        **{f"linears.{k}.weight": (config.card, d) for k in books},
    }


def _norm_shapes(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError naming the first key that is missing, unexpected or of another shape."""
    problems: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("is missing", lambda key: key not in state),
        ("is unexpected", lambda key: key not in shapes),
        ("has another shape", lambda key: tuple(state[key].shape) != shapes[key]),
    )
    for problem, found in problems:
        keys = [key for key in dict.fromkeys([*shapes, *state]) if found(key)]
        if keys:
            shape = f" (expected {shapes[keys[0]]})" if keys[0] in shapes else ""
            raise ValueError(f"decoder weight {keys[0]!r} {problem}{shape}; {len(keys)} in all")


class DecoderState(Mapping[str, Tensor]):
    """A state without its conditioners.

    Each tensor is looked up when it is used, so that a memory-mapped file can release the pages of
    tensors that are already loaded.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._keys = dict.fromkeys(k for k in state if not k.startswith("condition_provider."))

    def __getitem__(self, key: str) -> Tensor:
        return self._state[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys begin with `prefix`, by the rest of the key."""
    return {k.removeprefix(prefix): state[k] for k in state if k.startswith(prefix)}
