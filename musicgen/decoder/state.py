"""The tensors that hold all slots, and the decode step on them, which never waits for the device.

Slot i has row i of the sequence and rows ROWS_PER_CLIP * i and on of the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.sampling import ROWS_PER_CLIP, SamplingRows

UNKNOWN = -1  # a code that is not yet decoded
NOISE_STEPS = {"cpu": 1, "cuda": 32}  # decode steps for which noise is drawn at once: see State


@dataclass(frozen=True)
class State:
    """Everything that a decode step reads and writes: one clip per slot.

    The tensors keep their addresses, so a step can be captured. `noise` is drawn outside the step
    by each clip's own generator, for a constant number of steps at once, so that neighbours cannot
    change it. On the CPU that number is 1, as in audiocraft.
    """

    sequence: Tensor  # [slots, K, S] int64, in the delay pattern; UNKNOWN where not yet decoded
    column: Tensor  # [slots] int64, the column of `sequence` that the next step reads
    prefix: Tensor  # [slots] int64, positions before the first column
    noise: Tensor  # [slots, steps, K, card], exponential
    noise_step: Tensor  # [slots] int64
    sampling: SamplingRows
    cache: Cache
    positions: Tensor  # [capacity, dim] float32, the position embeddings

    @staticmethod
    def slot_bytes(lm: LM, columns: int, prefix: int) -> int:
        """Bytes of the keys and values of one slot; its other tensors are negligible."""
        config, keys_and_values = lm.config, 2
        positions = config.num_layers * (columns + prefix)
        row = keys_and_values * positions * config.dim * lm.cache_dtype.itemsize
        return ROWS_PER_CLIP * row

    @classmethod
    def empty(cls, lm: LM, slots: int, columns: int, prefix: int, shared: bool = False) -> "State":
        """Empty slots for sequences of `columns` columns and conditions of `prefix` positions.

        `shared` adds a row to the cache for the shared prefix.
        """
        config, device = lm.config, lm.device
        cross = config.cross_attention
        capacity = columns if cross else prefix + columns

        def integers(*shape: int, value: int = 0) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        steps = NOISE_STEPS[device.type]
        return cls(
            sequence=integers(slots, config.n_q, columns, value=config.special_token_id),
            column=integers(slots),
            prefix=integers(slots),
            noise=torch.ones(slots, steps, config.n_q, config.card, device=device),
            noise_step=integers(slots),
            sampling=SamplingRows.empty(slots, device),
            cache=Cache.empty(lm, ROWS_PER_CLIP * slots, capacity, prefix if cross else 0, shared),
            positions=lm.positions(capacity),
        )


def decode_step(lm: LM, ops: Ops, state: State, slots: Tensor) -> None:
    """Decode one column of the clips in `slots` [B] int64, in place, and advance to it.

    A slot may be listed more than once: its rows then compute and write the same values.
    """
    column, noise_step = state.column[slots], state.noise_step[slots]
    target, position = column + 1, state.prefix[slots] + column
    x = lm.embed(state.sequence[slots, :, column]) + state.positions[position]
    first = ROWS_PER_CLIP * slots
    rows = torch.stack([first + row for row in range(ROWS_PER_CLIP)], dim=1).flatten()
    x, position = (tensor.repeat_interleave(ROWS_PER_CLIP, dim=0) for tensor in (x, position))
    logits = lm.step(x, rows, position, state.cache, ops)
    codes = ops.sample(logits, state.noise[slots, noise_step], state.sampling.pick(slots))
    known = state.sequence[slots, :, target]
    state.sequence[slots, :, target] = torch.where(known == UNKNOWN, codes, known)
    state.column[slots] = target
    state.noise_step[slots] = (noise_step + 1) % state.noise.shape[1]
