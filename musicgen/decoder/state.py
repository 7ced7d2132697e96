"""The static tensors that clips are decoded in, and the decode step on them. Waits for nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.sampling import SamplingRows

UNKNOWN = -1  # a code that is yet to be decoded
NOISE_STEPS = {"cpu": 1, "cuda": 32}  # steps that noise is drawn for at a time: see State


@dataclass(frozen=True)
class State:
    """A number of slots, each of which holds one clip: all that a decode step reads and writes.

    Addresses stay as they are, so a step can be captured. `noise` [slots, steps, K, card] is drawn
    outside of the step, by each clip's own generator and a constant number of steps at a time, so
    that no neighbour can change it. On the CPU that is one step, as audiocraft does.
    """

    sequence: Tensor  # [slots, K, S] int64, in the delay pattern; UNKNOWN where not yet decoded
    column: Tensor  # [slots] int64, the column of `sequence` that the next step reads
    prefix: Tensor  # [slots] int64, positions before the first column
    noise: Tensor
    noise_step: Tensor  # [slots] int64
    sampling: SamplingRows
    cache: Cache
    positions: Tensor  # [capacity, dim] float32, the position embeddings

    @staticmethod
    def slot_bytes(lm: LM, columns: int, prefix: int) -> int:
        """Bytes of one slot, as good as all of it keys and values of its two rows."""
        config = lm.config
        return 2 * 2 * config.num_layers * config.dim * (columns + prefix) * lm.dtype.itemsize

    @classmethod
    def empty(cls, lm: LM, slots: int, columns: int, prefix: int, shared: bool = False) -> "State":
        """Slots for sequences of so many columns, after a prefix of at most so many positions, or
        with cross-attention to as many; and a row of what they may share.
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
            cache=Cache.empty(lm, 2 * slots, capacity, prefix if cross else 0, shared),
            positions=lm.positions(capacity),
        )


def decode_step(lm: LM, ops: Ops, state: State, slots: Tensor) -> None:
    """Read one column of the clips in `slots` [B] int64, decode the next one and move on to it.

    In place. A slot may stand there more than once: its rows then compute and write the same.
    """
    column, noise_step = state.column[slots], state.noise_step[slots]
    target, position = column + 1, state.prefix[slots] + column
    x = lm.embed(state.sequence[slots, :, column]) + state.positions[position]
    rows = torch.stack([2 * slots, 2 * slots + 1], dim=1).flatten()
    logits = lm.step(
        x.repeat_interleave(2, dim=0), rows, position.repeat_interleave(2), state.cache, ops
    )
    codes = ops.sample(logits, state.noise[slots, noise_step], state.sampling.pick(slots))
    known = state.sequence[slots, :, target]
    state.sequence[slots, :, target] = torch.where(known == UNKNOWN, codes, known)
    state.column[slots] = target
    state.noise_step[slots] = (noise_step + 1) % state.noise.shape[1]
