"""Sampling as one Triton kernel: guidance, softmax, top-k or top-p, and the draw.

It does not sort: the smallest probability that is kept is found bit by bit, because non-negative
floats have the same order as their bit patterns.
"""

# Kernels are Triton's language, not Python's, and have no types.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
from torch import Tensor

from musicgen.decoder.kernels.compiler import begin, jit, launch, tl, triton
from musicgen.decoder.sampling import SamplingRows


def sample_triton(logits: Tensor, noise: Tensor, rows: SamplingRows) -> Tensor:
    """Codes, as by `sampling.sample`, except that with top_p noise is indexed by code, not rank."""
    clips, n_q, card = noise.shape
    codes = torch.empty((clips, n_q), dtype=torch.int64, device=logits.device)
    _sample_kernel[(clips, n_q)](
        logits, noise, rows.top_k, rows.top_p, rows.temperature, rows.cfg_coef, codes, n_q, card,
        BLOCK=triton.next_power_of_2(card), num_warps=8, **launch(logits.device),
    )  # fmt: skip
    return codes


@jit
def _sample_kernel(
    logits, noise, top_k, top_p, temperature, cfg_coef, codes, n_q, card, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One code of one clip from logits [2B, K, card] and noise [B, K, card]."""
    begin(DEPENDENT)
    clip, book = tl.program_id(0), tl.program_id(1)
    code = tl.arange(0, BLOCK)
    inside = code < card
    cond_start = (2 * clip * n_q + book) * card
    cond = tl.load(logits + cond_start + code, mask=inside, other=0.0).to(tl.float32)
    uncond = tl.load(logits + cond_start + n_q * card + code, mask=inside, other=0.0)
    uncond = uncond.to(tl.float32)
    draw = tl.load(noise + (clip * n_q + book) * card + code, mask=inside, other=1.0)
    heat = tl.load(temperature + clip)
    greedy = heat == 0.0
    guided = uncond + (cond - uncond) * tl.load(cfg_coef + clip)
    guided = tl.where(inside, guided, float("-inf"))

    scaled = guided / tl.where(greedy, 1.0, heat)
    odds = tl.exp(scaled - tl.max(scaled, axis=0))
    probs = odds / tl.sum(odds, axis=0)

    # The largest bound such that the codes at or above it number top_k, or exceed a mass of top_p.
    mass = tl.load(top_p + clip)
    by_mass = mass > 0.0
    share = tl.where(by_mass, probs, 1.0)
    share = tl.where(inside, share, 0.0)
    bound = tl.where(by_mass, mass, (tl.load(top_k + clip) - 1).to(tl.float32))
    bits = probs.to(tl.int32, bitcast=True)
    least = tl.zeros((), dtype=tl.int32)
    for bit in tl.static_range(30, -1, -1):
        raised = least | (1 << bit)
        reached = tl.sum(tl.where(bits >= raised, share, 0.0), axis=0) > bound
        least = tl.where(reached, raised, least)

    kept = tl.where(bits >= least, probs, 0.0)
    drawn = tl.where(inside, kept / tl.sum(kept, axis=0) / draw, -1.0)
    chosen = tl.where(greedy, tl.argmax(guided, axis=0), tl.argmax(drawn, axis=0))
    # NaN logits must not give an index beyond the embedding table.
    chosen = tl.minimum(chosen, card - 1)
    tl.store(codes + clip * n_q + book, chosen.to(tl.int64))
