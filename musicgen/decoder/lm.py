"""The decoder: a causal transformer over K code streams, and its key-value cache.

It is loaded from audiocraft's weights and computes the same as audiocraft's LMModel (models/lm.py,
modules/transformer.py): pre-norm, no biases, sinusoidal positions, GELU, and conditions either
prepended or attended to by cross-attention. It works on rows; the engine maps clips to rows.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen.decoder import kernels
from musicgen.decoder.kernels import Ops, Stream
from musicgen.decoder.kernels.products import linear, normed
from musicgen.decoder.sampling import ROWS_PER_CLIP
from musicgen.decoder.weights import (
    DecoderState,
    LMConfig,
    Placement,
    below,
    check_state,
    decoder_shapes,
)

if TYPE_CHECKING:
    from musicgen.decoder.kernels.team import Team

# Positions that are prefilled at once; a piece delays the running clips by a few decode steps.
PREFILL_PIECE = {"cpu": 64, "cuda": 256}
# Up to this width, most operations of a step end before a second thread has woken up.
ONE_THREAD_DIM = 256


@dataclass(frozen=True)
class Cache:
    """Keys and values of R rows, [layers, R, H, S, Dh]; S is the capacity.

    Those of cross-attention are [layers, R, H, L, Dh], filled up to `cross_lengths` [R]. With a
    shared prefix there is one more row, the last, which holds it, and `shared_lengths` [R] says how
    many of its positions each row begins with.
    """

    keys: Tensor
    values: Tensor
    cross_keys: Tensor
    cross_values: Tensor
    cross_lengths: Tensor
    shared_lengths: Tensor | None = None

    @classmethod
    def empty(
        cls, lm: "LM", rows: int, capacity: int, cross_capacity: int, shared: bool = False
    ) -> "Cache":
        """A cache of zeros: attention's masks do not remove a NaN from uninitialized memory."""

        def zeros(length: int) -> Tensor:
            shape = (config.num_layers, rows + shared, config.num_heads, length, config.head_dim)
            return _zeros(shape, lm.device, lm.cache_dtype)

        config = lm.config
        lengths = torch.ones(rows, dtype=torch.int64, device=lm.device)
        cross = (zeros(cross_capacity), zeros(cross_capacity))
        none = torch.zeros_like(lengths) if shared else None
        return cls(zeros(capacity), zeros(capacity), *cross, lengths, none)

    def rows(self, rows: slice) -> "Cache":
        """A view of some rows, without the shared prefix."""
        return Cache(
            self.keys[:, rows],
            self.values[:, rows],
            self.cross_keys[:, rows],
            self.cross_values[:, rows],
            self.cross_lengths[rows],
        )

    def lengths(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """For rows at these positions: how many positions attention and cross-attention read, and
        how many of the former are in the shared prefix; each [R] int64.
        """
        shared = None if self.shared_lengths is None else self.shared_lengths[rows]
        return positions + 1, self.cross_lengths[rows], shared

    def copy_shared_prefix(self, row: int, length: int) -> None:
        """Begin a row with the first `length` positions of the shared prefix."""
        if self.shared_lengths is None:
            return
        self.shared_lengths[row].fill_(length)
        for cache in (self.keys, self.values):
            cache[:, row, :, :length] = cache[:, -1, :, :length]


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros. On a CPU they take memory page by page as they are written.

    Zeros of torch take it all at once, and those of numpy have huge pages, of which a clip's first
    position would touch all: seconds and gigabytes with a large model.
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)


class Layer(nn.Module):
    """The weights of one transformer layer."""

    def __init__(self, config: LMConfig, state: Mapping[str, Tensor], place: Placement) -> None:
        super().__init__()
        self.norm1 = place.norm(state, "norm1")
        self.qkv = place.product(state["self_attn.in_proj_weight"])
        self.out = place.product(state["self_attn.out_proj.weight"])
        if config.cross_attention:
            query, key_value = state["cross_attention.in_proj_weight"].tensor_split([config.dim])
            self.norm_cross = place.norm(state, "norm_cross")
            self.cross_q = place.product(query)
            self.cross_kv = place.product(key_value)
            self.cross_out = place.product(state["cross_attention.out_proj.weight"])
        self.norm2 = place.norm(state, "norm2")
        self.up = place.product(state["linear1.weight"])
        self.down = place.product(state["linear2.weight"])


class LM(nn.Module):
    """The decoder of one checkpoint, on one device."""

    def __init__(
        self,
        config: LMConfig,
        state: Mapping[str, Tensor],
        place: Placement,
        team: "Team | None" = None,
    ) -> None:
        """Use `from_audiocraft`, which checks the state first."""
        super().__init__()
        self.config = config
        self.team = team  # the threads that multiply packed weights
        self.device = place.device
        self.dtype = place.dtype
        self.cache_dtype = place.cache_dtype
        books = range(config.n_q)
        self.embeddings = place.wide(torch.cat([state[f"emb.{k}.weight"] for k in books]))

        layers = nn.ModuleList(
            Layer(config, below(state, f"transformer.layers.{i}."), place)
            for i in range(config.num_layers)
        )
        self.layers = cast("list[Layer]", layers)
        self.out_norm = place.norm(state, "out_norm")
        self.heads = place.product(torch.cat([state[f"linears.{k}.weight"] for k in books]))
        # Codebook k's embeddings begin at row k * (card + 1) of the joint table.
        self.offsets = torch.arange(config.n_q, device=self.device) * (config.card + 1)

    @classmethod
    def from_audiocraft(
        cls,
        config: LMConfig,
        state: Mapping[str, Tensor],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        threads: int = 1,
        fast: bool = False,
    ) -> "LM":
        """Build from the state dict of an audiocraft LMModel; `condition_provider.*` is ignored.

        Tensors that have the wanted dtype and device are used without a copy. `dtype` is the dtype
        of the products; embeddings and norms are float32. On the CPU, float32 products use packed
        weights, which are float16 where that loses nothing, and up to `threads` threads. `fast`
        rounds the packed weights to int8, and keys and values to float16; it is for the CPU only.
        Raises ValueError naming the first key that is missing, unexpected or of another shape.
        """
        decoder = DecoderState(state)
        check_state(decoder, decoder_shapes(config))
        device = torch.device(device)
        if device.type != "cpu" or dtype != torch.float32:
            if fast:
                raise ValueError(f"the fast mode needs float32 on a CPU, not {dtype} on {device}")
            return cls(config, decoder, Placement(device, dtype, dtype, None))
        team = kernels.cpu_team(1 if config.dim <= ONE_THREAD_DIM else threads)
        pack = partial(kernels.quantize if fast else kernels.pack, team=team)
        cache_dtype = torch.float16 if fast else dtype
        return cls(config, decoder, Placement(device, dtype, cache_dtype, pack), team)

    def positions(self, length: int) -> Tensor:
        """The first `length` sinusoidal embeddings [length, dim] (`create_sin_embedding`)."""
        half = self.config.dim // 2
        exponent = torch.arange(half, device=self.device, dtype=torch.float32) / (half - 1)
        period = torch.full([], 10_000.0, device=self.device) ** exponent
        phase = torch.arange(length, device=self.device, dtype=torch.float32)[:, None] / period
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def embed(self, tokens: Tensor) -> Tensor:
        """The sum [..., dim] of the embeddings of tokens [..., K]."""
        return F.embedding(tokens + self.offsets, self.embeddings).sum(dim=-2)

    def prefill(
        self,
        tokens: Tensor,
        prefix: Tensor | None,
        cross: Tensor | None,
        cache: Cache,
        filled: tuple[int, int] = (0, 0),
    ) -> Iterator[None]:
        """Fill the rows of one clip's cache, one piece per `next`; ends with the last piece.

        `tokens` [T, K] follow `prefix` [2, P, dim]; `cross` [2, L, dim] is for cross-attention.
        `filled` positions of each row are in the cache already; the second row has at least as many
        as the first. The pieces depend on this clip alone, so neighbours cannot change its codes.
        """
        if cross is not None:
            self._prefill_cross(cross, cache)
        x = self.embed(tokens).expand(ROWS_PER_CLIP, -1, -1)
        if prefix is not None:
            x = torch.cat([prefix.to(x), x], dim=1)
        x = x + self.positions(x.shape[1])
        cond, uncond = filled
        size = PREFILL_PIECE[self.device.type]
        # Up to `uncond`, only the conditional row has anything to prefill.
        pieces = [(slice(1), piece) for piece in _pieces(cond, uncond, size)]
        pieces += [(slice(ROWS_PER_CLIP), piece) for piece in _pieces(uncond, x.shape[1], size)]
        for index, (rows, piece) in enumerate(pieces):
            if index:
                yield
            self._extend(x[rows, piece], piece.start, cross, cache.rows(rows))

    def prefill_shared(self, prefix: Tensor, cache: Cache) -> None:
        """Fill the cache's last row with the shared prefix [P, dim]."""
        positions = self.positions(len(prefix))
        x = (prefix.to(positions) + positions)[None]
        for piece in _pieces(0, len(prefix), PREFILL_PIECE[self.device.type]):
            self._extend(x[:, piece], piece.start, None, cache.rows(slice(-1, None)))

    def _extend(self, x: Tensor, start: int, cross: Tensor | None, cache: Cache) -> None:
        """Extend the cache by embedded positions x [R, T, dim], the first of which is `start`."""
        if self.team:
            self._extend_rows(x, start, cache)
            return
        stop = start + x.shape[1]
        # Additive and in the products' dtype: a mask of bools would be converted in every layer.
        mask = x.new_full((x.shape[1], stop), -torch.inf, dtype=self.dtype).triu(start + 1)
        for i, layer in enumerate(self.layers):
            q, k, v = self._heads(linear(normed(x, layer.norm1), layer.qkv), 3)
            keys, values = cache.keys[i, :, :, :stop], cache.values[i, :, :, :stop]
            keys[:, :, start:] = k
            values[:, :, start:] = v
            if i == len(self.layers) - 1:
                break  # the rest only serves logits, which a prefill does not need
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = x + linear(y.transpose(1, 2).flatten(2), layer.out)
            if cross is not None:
                (q,) = self._heads(linear(normed(x, layer.norm_cross), layer.cross_q), 1)
                filled = slice(cross.shape[1])
                y = F.scaled_dot_product_attention(
                    q, cache.cross_keys[i, :, :, filled], cache.cross_values[i, :, :, filled]
                )
                x = x + linear(y.transpose(1, 2).flatten(2), layer.cross_out)
            x = x + linear(F.gelu(linear(normed(x, layer.norm2), layer.up)), layer.down)

    def _extend_rows(self, x: Tensor, start: int, cache: Cache) -> None:
        """`_extend` on the CPU: every position is a row, as in a decode step.

        All keys and values of the piece are in the cache before a position attends to them.
        """
        count, length, _ = x.shape
        rows = torch.arange(count).repeat_interleave(length)
        positions = torch.arange(start, start + length).repeat(count)
        inputs = x.reshape(count * length, -1), rows, positions, *cache.lengths(rows, positions)
        self._ops().replay(partial(self._layers, cache, False), inputs)

    def step(self, x: Tensor, rows: Tensor, positions: Tensor, cache: Cache, ops: Ops) -> Tensor:
        """Logits [R, K, card] of embedded rows x [R, dim] at positions [R]; extends the cache.

        `rows` [R] int64 are the indices of the rows in the cache.
        """
        inputs = x, rows, positions, *cache.lengths(rows, positions)
        key = len(x), id(cache)  # a recording keeps the cache, so its id stays its own
        logits = ops.replay(partial(self._layers, cache, True), inputs, key)
        return logits.view(len(rows), self.config.n_q, self.config.card)

    def _layers(
        self,
        cache: Cache,
        logits: bool,
        ops: Ops,
        x: Stream,
        rows: Tensor,
        positions: Tensor,
        lengths: Tensor,
        cross_lengths: Tensor,
        shared: Tensor | None,
    ) -> Tensor:
        """All layers, on rows x [R, dim]; the logits, or just the keys and values in the cache."""
        for i, layer in enumerate(self.layers):
            keys, values = cache.keys[i], cache.values[i]
            q = ops.norm_qkv(x, layer.norm1, layer.qkv, keys, values, rows, positions)
            if not logits and i == len(self.layers) - 1:
                return q
            y = ops.attention(q, keys, values, rows, lengths, shared)
            x = ops.linear_add(y, layer.out, x)
            if self.config.cross_attention:
                q = ops.norm_linear(x, layer.norm_cross, layer.cross_q)
                y = ops.attention(
                    q, cache.cross_keys[i], cache.cross_values[i], rows, cross_lengths
                )
                x = ops.linear_add(y, layer.cross_out, x)
            x = ops.linear_add(ops.norm_linear(x, layer.norm2, layer.up, gelu=True), layer.down, x)
        return ops.norm_linear(x, self.out_norm, self.heads)

    def _ops(self) -> Any:
        """The CPU's operations, without recordings."""
        assert self.team
        return kernels.cpu_ops(self.team)

    def _linear(self, x: Tensor, weight: kernels.Weight) -> Tensor:
        """`linear` of x [..., D], with packed weights as well."""
        if not self.team:
            return linear(x, weight)
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = self._ops().replay(lambda ops, rows: ops.linear(rows, weight), (rows,))
        return y.view(*x.shape[:-1], -1)

    def _prefill_cross(self, cross: Tensor, cache: Cache) -> None:
        length = cross.shape[1]
        cross = cross.to(self.device, torch.float32)
        for i, layer in enumerate(self.layers):
            k, v = self._heads(self._linear(cross, layer.cross_kv), 2)
            cache.cross_keys[i, :, :, :length] = k
            cache.cross_values[i, :, :, :length] = v
        cache.cross_lengths.fill_(length)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """`parts` tensors [R, H, T, Dh] from x [R, T, parts * dim]."""
        split = x.view(*x.shape[:2], parts, self.config.num_heads, self.config.head_dim)
        return split.permute(2, 0, 3, 1, 4).unbind(0)


def _pieces(begin: int, end: int, size: int) -> Iterator[slice]:
    """The range from `begin` to `end`, cut into pieces of `size` and a remainder."""
    for start in range(begin, end, size):
        yield slice(start, min(start + size, end))
