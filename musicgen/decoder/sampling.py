"""From logits to codes: guidance, temperature, top-k, top-p, the draw. Pure functions.

Every clip of a batch has its own settings, so the settings are tensors. `sample` computes every
rule for every clip and never branches on data: any mixture of settings runs the same few kernels,
as a CUDA graph needs. The arithmetic is audiocraft's (models/lm.py `_sample_next_token`,
utils/utils.py), bit for bit with B = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Classifier-free guidance decodes each clip twice: first a conditional row, then an unconditional.
ROWS_PER_CLIP = 2
# A smaller temperature would overflow the logits; its limit is greedy decoding, so use that.
LEAST_TEMPERATURE = 1e-9
SEED_RANGE = 2**32  # seeds are 0 .. SEED_RANGE - 1


@dataclass(frozen=True)
class Sampling:
    """The settings with which one clip is sampled."""

    top_k: int = 250  # 0: no limit; above card: clamped
    top_p: float = 0.0  # above 0 it replaces top_k
    temperature: float = 1.0  # 0: greedy
    cfg_coef: float = 3.0


@dataclass(frozen=True)
class SamplingRows:
    """The settings of B clips as tensors [B, 1, 1]."""

    top_k: Tensor  # int64, 1 .. card
    top_p: Tensor
    temperature: Tensor
    cfg_coef: Tensor

    @classmethod
    def empty(cls, clips: int, device: torch.device) -> "SamplingRows":
        """Settings of greedy sampling, to be overwritten by `set`."""

        def zeros() -> Tensor:
            return torch.zeros(clips, 1, 1, device=device)

        return cls(zeros().long() + 1, zeros(), zeros(), zeros())

    def set(self, clip: int, sampling: Sampling, card: int) -> None:
        """Write one clip's settings without waiting for the device."""
        self.top_k[clip].fill_(min(sampling.top_k, card) or card)
        self.top_p[clip].fill_(sampling.top_p)
        greedy = sampling.temperature < LEAST_TEMPERATURE
        self.temperature[clip].fill_(0.0 if greedy else sampling.temperature)
        self.cfg_coef[clip].fill_(sampling.cfg_coef)

    def pick(self, clips: Tensor | slice) -> "SamplingRows":
        """The settings of some of the clips; `clips` is a slice or int64 indices."""
        return SamplingRows(
            self.top_k[clips], self.top_p[clips], self.temperature[clips], self.cfg_coef[clips]
        )


def guide(logits: Tensor, cfg_coef: Tensor) -> Tensor:
    """Guided logits [B, K, card] from logits [2B, K, card], two rows per clip (`ROWS_PER_CLIP`).

    Classifier-free guidance, uncond + (cond - uncond) * cfg_coef, in float32 for any logits dtype.
    """
    cond, uncond = (logits[row::ROWS_PER_CLIP].float() for row in range(ROWS_PER_CLIP))
    return uncond + (cond - uncond) * cfg_coef


def sample(logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
    """Codes [B, K] int64 from logits [2B, K, card], two rows per clip (`ROWS_PER_CLIP`).

    `noise` [B, K, card] is exponential: argmax(p / noise) equals `torch.multinomial(p, 1)` for the
    same draws, without its check of `p`, which would wait for the device.
    """
    guided = guide(logits, rows.cfg_coef)
    greedy = rows.temperature == 0
    probs = torch.softmax(guided / (rows.temperature + greedy), dim=-1)
    ordered, order = torch.sort(probs, dim=-1, descending=True)

    threshold = ordered.gather(-1, (rows.top_k - 1).expand(*ordered.shape[:-1], 1))
    by_k = _draw(probs * (probs >= threshold), noise)

    # The probability mass before a code decides, so the code that crosses top_p is kept.
    before = ordered.cumsum(dim=-1) - ordered
    by_p = order.gather(-1, _draw(ordered * ~(before > rows.top_p), noise))

    codes = torch.where(rows.top_p > 0, by_p, by_k)
    return torch.where(greedy, guided.argmax(dim=-1, keepdim=True), codes).squeeze(-1)


def sample_each(logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
    """`sample` for the CPU: the same codes, computed clip by clip with only the rules in use.

    One clip at a time, because torch may order the sums of a larger tensor differently. On the CPU
    the settings can be read without waiting.
    """
    settings = (rows.top_k, rows.top_p, rows.temperature)
    values = zip(*(setting.flatten().tolist() for setting in settings), strict=True)
    guided = guide(logits, rows.cfg_coef)
    clips = zip(guided.split(1), noise.split(1), values, strict=True)
    return torch.cat([_sample_clip(clip, draw, *value) for clip, draw, value in clips])


def _sample_clip(
    guided: Tensor, noise: Tensor, top_k: int, top_p: float, temperature: float
) -> Tensor:
    """Codes [1, K] of one clip from its guided logits [1, K, card]."""
    if temperature == 0:
        return guided.argmax(dim=-1)
    probs = torch.softmax(guided / temperature, dim=-1)
    if top_p > 0:
        ordered, order = torch.sort(probs, dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        return order.gather(-1, _draw(ordered * ~(before > top_p), noise)).squeeze(-1)
    if top_k < probs.shape[-1]:
        threshold = probs.topk(top_k, sorted=False).values.amin(dim=-1, keepdim=True)
        probs = probs * (probs >= threshold)
    return _draw(probs, noise).squeeze(-1)


def _draw(kept: Tensor, noise: Tensor) -> Tensor:
    """One index [B, K, 1] per distribution, drawn from unnormalized probabilities [B, K, card]."""
    probs = kept / kept.sum(dim=-1, keepdim=True)
    return (probs / noise).argmax(dim=-1, keepdim=True)
