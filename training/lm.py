"""Trains the language model with audiocraft's classes on codes of synthesized stereo music.

The conditions precede the codes as in musicgen-stereo-melody: chroma of the melody, then the text.
Each is omitted in some examples, as classifier-free guidance requires.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from audiocraft.models.encodec import EncodecModel
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import BaseConditioner, ConditionFuser, ConditioningProvider
from audiocraft.modules.transformer import set_efficient_attention_backend
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from training import codec, configs, song, synth, text
from training.dataset import (
    AUXILIARY,
    BEGINNING,
    CHROMA_EXPONENT,
    CHROMA_HOP,
    MELODY_FRAMES,
    SECONDS,
    SEED,
    WHOLE,
    Batch,
    Clips,
    K,
    with_mistakes,
)
from training.muon import Muon
from training.run import Run, precision

TEXT_NAME = "t5-demo"
STEPS, RATE = 17000, 2e-3
LEVEL_WEIGHTS = (
    2.0,
    1.2,
    0.5,
    0.3,
    0.6,
)  # pitch and rhythm are first, hats last
AUXILIARY_LAYER, AUXILIARY_WEIGHT = 2, 0.15  # the layer with the auxiliary heads
BEGINNINGS = 0.25  # share of the batches
REPORT_EVERY = 100
SLOWER = synth.FRAME / CHROMA_HOP  # chroma frames per code
OFFSET = MELODY_FRAMES + text.LENGTH  # positions before the first code: chroma, then text
SHARPNESS = 1.2
MARK, CONSTANT, ATTENTION = 0.7, 28, 11.0  # size of the mark, constant dimensions, sharpness


def config() -> dict[str, Any]:
    """Returns audiocraft's configuration of the language model."""
    values = configs.lm_config("stereo-melody")
    values["dataset"]["segment_duration"] = SECONDS
    values["transformer_lm"] |= {
        "dim": 256, "num_heads": 4, "num_layers": 4, "card": codec.CARD, "n_q": K
    }  # fmt: skip
    values["codebooks_pattern"]["delay"]["delays"] = [k // 2 for k in range(K)]
    # No source separation: the training melodies are clean, and Demucs is larger than the model.
    melody = {"radix2_exp": CHROMA_EXPONENT, "separator": "none"}
    values["conditioners"]["self_wav"]["chroma_stem"] |= melody
    values["conditioners"]["description"]["t5"]["name"] = TEXT_NAME
    return values


class Demo(nn.Module):
    """The language model and the text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        values = config()
        arguments = values["transformer_lm"] | {"custom": True, "memory_efficient": False}
        set_efficient_attention_backend("torch")
        torch.manual_seed(SEED)
        dim = arguments["dim"]
        self.text = text.build()
        conditioners = {
            "self_wav": BaseConditioner(configs.N_CHROMA, dim),
            "description": BaseConditioner(text.WIDTH, dim),
        }
        fuse = ("sum", "prepend", "cross", "input_interpolate")
        self.lm = LMModel(
            DelayedPatternProvider(K, values["codebooks_pattern"]["delay"]["delays"]),
            ConditioningProvider(conditioners),
            ConditionFuser({method: values["fuser"][method] for method in fuse}),
            **arguments,
        )
        with torch.no_grad():
            for table in self.lm.emb:  # as large as the positional embeddings added to them
                table.weight *= 3
        self.auxiliary = nn.ModuleDict({n: nn.Linear(dim, a) for n, a in AUXILIARY.items()})
        self.hidden: Tensor | None = None  # the last output of AUXILIARY_LAYER
        self.lm.transformer.layers[AUXILIARY_LAYER].register_forward_hook(self._keep)
        first = self.lm.transformer.layers[0].self_attn
        initialize_melody_head(first, dim)
        initialize_text_head(first, conditioners["description"].output_proj, dim)
        for layer in self.lm.transformer.layers:
            # Selects PyTorch's attention. As a constructor argument it would require xformers.
            layer.self_attn.memory_efficient = True

    def _keep(self, layer: nn.Module, arguments: Any, output: Tensor) -> None:
        self.hidden = output

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns cross-entropies in nats: "codes" [K], and one for each AUXILIARY target."""
        project = self.lm.condition_provider.conditioners
        words = self.text(input_ids=batch.tokens).last_hidden_state
        described = project["description"].output_proj(words) * batch.has_text[:, None, None]
        melody = project["self_wav"].output_proj(F.one_hot(batch.chroma, configs.N_CHROMA).float())
        # In the order of audiocraft's provider, which results in the melody being first.
        conditions = {"description": (described, None), "self_wav": (melody, None)}
        pattern = self.lm.pattern_provider.get_pattern(batch.codes.shape[-1])
        inputs, sequence = (
            pattern.build_pattern_sequence(codes, codec.CARD)[0]
            for codes in (batch.inputs, batch.codes)
        )
        logits = self.lm(inputs[..., :-1], [], conditions)
        losses = [
            F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=codec.CARD)
            for scores, targets in zip(logits.unbind(1), sequence[..., 1:].unbind(1), strict=True)
        ]
        assert self.hidden is not None
        first, frames = self.hidden.shape[1] - logits.shape[2], batch.codes.shape[2]
        hidden = self.hidden[:, first : first + frames].flatten(0, 1)
        auxiliary = {
            name: F.cross_entropy(head(hidden), getattr(batch, name).flatten())
            for name, head in self.auxiliary.items()
        }
        return {"codes": torch.stack(losses), **auxiliary}


@torch.no_grad()
def initialize_melody_head(attention: nn.Module, dim: int) -> None:
    """Initialize one head so that each code attends to the chroma frame of the same time.

    Positional embeddings are waves of falling frequencies. Code t is at position t + OFFSET and its
    chroma frame near t * SLOWER, where two waves whose frequencies differ by that factor agree.
    Learning this from random weights would take too long on two cores.
    """
    frequencies = 10000 ** (-torch.arange(dim // 2) / (dim // 2 - 1))
    apart = int((frequencies > SLOWER).sum())  # index distance of a wave slower by this factor
    slower = float(frequencies[apart])
    width = dim // attention.num_heads
    used = torch.arange(width // 2)
    # The alignment is exact in the middle of the clip.
    lag = slower * OFFSET - (SLOWER - slower) * SECONDS * song.FRAME_RATE / 2
    shift = frequencies[used] * lag
    query, key = torch.zeros(2, 2, width // 2, 2, dim // 2)
    query[0, used, 0, used + apart], query[0, used, 1, used + apart] = shift.cos(), shift.sin()
    query[1, used, 0, used + apart], query[1, used, 1, used + apart] = -shift.sin(), shift.cos()
    key[0, used, 0, used] = key[1, used, 1, used] = 1.0
    attention.in_proj_weight[:width] = SHARPNESS * query.flatten(0, 1).flatten(1)
    attention.in_proj_weight[dim : dim + width] = SHARPNESS * key.flatten(0, 1).flatten(1)


@torch.no_grad()
def initialize_text_head(attention: nn.Module, projection: nn.Linear, dim: int) -> None:
    """Initialize another head so that every position attends equally to all words.

    The bias of the text projection marks words; the slowest positional waves are nearly constant.
    """
    mark = torch.randn(dim).sign()
    projection.bias.copy_(MARK * mark)
    width = dim // attention.num_heads
    query, key = attention.in_proj_weight[width], attention.in_proj_weight[dim + width]
    query.zero_()[dim // 2 - CONSTANT : dim // 2] = ATTENTION / CONSTANT
    key.copy_(ATTENTION / dim * mark)


def train(
    folder: Path,
    model: Demo,
    encodec: EncodecModel,
    device: str,
    *,
    steps: int,
    rate: float,
    drawn: range,
) -> Demo:
    """Train `model` on the clips numbered `drawn`; a state in `folder` is resumed."""
    run = Run(folder, model.to(device), steps, optimizers(model, rate))
    clips = Clips(encodec, device)
    levels = torch.tensor(LEVEL_WEIGHTS, device=device).repeat_interleave(2)
    levels = levels / levels.sum()
    held_out = cache(lambda: [clips.held_out(kind).to(device) for kind in (WHOLE, BEGINNING)])
    for step in run:
        rng = np.random.default_rng([SEED, step])
        kind = BEGINNING if rng.random() < BEGINNINGS else WHOLE
        indices = rng.integers(drawn.start, drawn.stop, size=kind.batch).tolist()
        batch = clips.batch(kind, indices, rng)
        batch = replace(batch, inputs=with_mistakes(batch.codes, rng)).to(device)
        with precision(device):
            losses = model(batch)
        auxiliary = sum(losses[name] for name in AUXILIARY)
        run.update((losses["codes"] * levels).sum() + AUXILIARY_WEIGHT * auxiliary)
        if step % REPORT_EVERY == 0 or step + 1 == steps:
            run.note(step, **measure(model, *held_out(), device))
    return model.eval()


def optimizers(model: Demo, rate: float) -> list[Optimizer]:
    """Returns Muon for the decoder's matrices, which needs fewer steps, and AdamW for the rest."""
    matrices = [p for p in model.lm.transformer.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, rate),
        AdamW(others, rate, (0.9, 0.98), weight_decay=0.01),
    ]


@torch.inference_mode()
def measure(model: Demo, whole: Batch, beginning: Batch, device: str) -> dict[str, float]:
    """Returns held-out losses; for beginnings also with another clip's text or melody."""
    batches = {
        "held_out": whole,
        "beginning": beginning,
        "other_text": replace(beginning, tokens=beginning.tokens.roll(1, 0)),
        "other_melody": replace(beginning, chroma=beginning.chroma.roll(1, 0)),
    }
    with precision(device):
        losses = {name: model(batch) for name, batch in batches.items()}
    codes = {name: found["codes"].mean().item() for name, found in losses.items()}
    return codes | {name: losses["beginning"][name].item() for name in AUXILIARY}
