"""From logits to codes: guidance, temperature, top-k, top-p. Pure functions; no branch on data.

Every clip of a batch has its own settings, so they are tensors and all the rules are computed for
all the rows: the same few kernels for any mixture, which a CUDA graph can hold. The arithmetic is
audiocraft's (models/lm.py `_sample_next_token`, utils/utils.py), bit for bit with B = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-9
SEED_RANGE = 2**32  # seeds are 0 .. SEED_RANGE - 1


@dataclass(frozen=True)
class Sampling:
    """How one clip is sampled."""

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
        """Rows of greedy sampling, to be filled by `set`."""

        def zeros() -> Tensor:
            return torch.zeros(clips, 1, 1, device=device)

        return cls(zeros().long() + 1, zeros(), zeros(), zeros())

    def set(self, clip: int, sampling: Sampling, card: int) -> None:
        """Write one clip's settings; nothing waits for the device."""
        self.top_k[clip].fill_(min(sampling.top_k, card) or card)
        self.top_p[clip].fill_(sampling.top_p)
        # Logits divided by less would not be finite; the likeliest code is what it comes to.
        cold = sampling.temperature < LEAST_TEMPERATURE
        self.temperature[clip].fill_(0.0 if cold else sampling.temperature)
        self.cfg_coef[clip].fill_(sampling.cfg_coef)

    def pick(self, clips: Tensor | slice) -> "SamplingRows":
        """The settings of some of the clips; `clips` is a slice or int64 indices."""
        return SamplingRows(
            self.top_k[clips], self.top_p[clips], self.temperature[clips], self.cfg_coef[clips]
        )


def guide(logits: Tensor, cfg_coef: Tensor) -> Tensor:
    """Logits [2B, K, card], clip by clip conditioned then not -> guided logits [B, K, card].

    Classifier-free guidance, uncond + (cond - uncond) * cfg_coef, in float32 whatever the logits.
    """
    cond, uncond = logits[0::2].float(), logits[1::2].float()
    return uncond + (cond - uncond) * cfg_coef


def sample(logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
    """Logits [2B, K, card], clip by clip conditioned then not -> codes [B, K] int64.

    `noise` [B, K, card] is exponential: argmax(p / noise) is what `torch.multinomial(p, 1)`
    returns for the same draws, without its check of `p`, which waits for the device.
    """
    guided = guide(logits, rows.cfg_coef)
    greedy = rows.temperature == 0
    probs = torch.softmax(guided / (rows.temperature + greedy), dim=-1)
    ordered, order = torch.sort(probs, dim=-1, descending=True)

    threshold = ordered.gather(-1, (rows.top_k - 1).expand(*ordered.shape[:-1], 1))
    by_k = _draw(probs * (probs >= threshold), noise)

    # The mass before a code decides: the code that crosses top_p is kept.
    before = ordered.cumsum(dim=-1) - ordered
    by_p = order.gather(-1, _draw(ordered * ~(before > rows.top_p), noise))

    codes = torch.where(rows.top_p > 0, by_p, by_k)
    return torch.where(greedy, guided.argmax(dim=-1, keepdim=True), codes).squeeze(-1)


def sample_each(logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
    """`sample` for the CPU: the same codes, clip by clip and only by the rules a clip asks for.

    A reduction over more rows may be cut differently; and settings can be read there, as nothing
    has to wait for them.
    """
    settings = (rows.top_k, rows.top_p, rows.temperature)
    values = zip(*(setting.flatten().tolist() for setting in settings), strict=True)
    guided = guide(logits, rows.cfg_coef)
    clips = zip(guided.split(1), noise.split(1), values, strict=True)
    return torch.cat([_sample_clip(clip, draw, *value) for clip, draw, value in clips])


def _sample_clip(
    guided: Tensor, noise: Tensor, top_k: int, top_p: float, temperature: float
) -> Tensor:
    """Guided logits [1, K, card] of one clip -> codes [1, K]."""
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
    """Unnormalized probabilities [B, K, card] -> one index each, [B, K, 1]."""
    probs = kept / kept.sum(dim=-1, keepdim=True)
    return (probs / noise).argmax(dim=-1, keepdim=True)
