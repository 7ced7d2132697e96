"""Trains the language model, audiocraft's classes, on codes of synthesized stereo music.

Conditions stand before the codes as in musicgen-stereo-melody: chroma of the melody, then the
text. Each is left out at times, so that guidance has something to compare with.
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
    BEGINNING,
    CHROMA_EXPONENT,
    CHROMA_HOP,
    MELODY_FRAMES,
    QUESTIONS,
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
LEVEL_WEIGHTS = (2.0, 1.2, 0.5, 0.3, 0.6)  # the first carry pitch and rhythm, the last hats
ASKED_LAYER, ASKED_WEIGHT = 2, 0.15  # which layer knows the answers to QUESTIONS
BEGINNINGS = 0.25  # share of the batches
REPORT_EVERY = 100
SLOWER = synth.FRAME / CHROMA_HOP  # chroma frames of a code
OFFSET = MELODY_FRAMES + text.LENGTH  # positions before the first code: chroma, then text
SHARPNESS = 1.2
MARK, CONSTANT, ATTENTION = 0.7, 28, 11.0  # size of words' mark, constant waves, how sharply


def config() -> dict[str, Any]:
    """audiocraft's configuration of the language model."""
    values = configs.lm_config("stereo-melody")
    values["dataset"]["segment_duration"] = SECONDS
    values["transformer_lm"] |= {
        "dim": 256, "num_heads": 4, "num_layers": 4, "card": codec.CARD, "n_q": K
    }  # fmt: skip
    values["codebooks_pattern"]["delay"]["delays"] = [k // 2 for k in range(K)]
    # Nothing is separated: the training melodies are clean, and Demucs has no place in so small
    # a model.
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
            for table in self.lm.emb:  # as loud as the positions that are added to them
                table.weight *= 3
        self.questions = nn.ModuleDict({n: nn.Linear(dim, a) for n, a in QUESTIONS.items()})
        self.asked: Tensor | None = None  # what the last run of ASKED_LAYER gave
        self.lm.transformer.layers[ASKED_LAYER].register_forward_hook(self._keep)
        first = self.lm.transformer.layers[0].self_attn
        look_along_the_melody(first, dim)
        look_at_the_text(first, conditioners["description"].output_proj, dim)
        for layer in self.lm.transformer.layers:
            # torch's attention; asked for when building it, audiocraft would look for xformers.
            layer.self_attn.memory_efficient = True

    def _keep(self, layer: nn.Module, arguments: Any, output: Tensor) -> None:
        self.asked = output

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy in nats: of each codebook as "codes" [K], of each of QUESTIONS."""
        project = self.lm.condition_provider.conditioners
        words = self.text(input_ids=batch.tokens).last_hidden_state
        described = project["description"].output_proj(words) * batch.has_text[:, None, None]
        melody = project["self_wav"].output_proj(F.one_hot(batch.chroma, configs.N_CHROMA).float())
        # The order in which audiocraft's provider gives them: the melody comes to stand first.
        conditions = {"description": (described, None), "self_wav": (melody, None)}
        pattern = self.lm.pattern_provider.get_pattern(batch.codes.shape[-1])
        heard, sequence = (
            pattern.build_pattern_sequence(codes, codec.CARD)[0]
            for codes in (batch.heard, batch.codes)
        )
        logits = self.lm(heard[..., :-1], [], conditions)
        losses = [
            F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=codec.CARD)
            for scores, targets in zip(logits.unbind(1), sequence[..., 1:].unbind(1), strict=True)
        ]
        assert self.asked is not None
        first, frames = self.asked.shape[1] - logits.shape[2], batch.codes.shape[2]
        known = self.asked[:, first : first + frames].flatten(0, 1)
        answers = {
            name: F.cross_entropy(question(known), getattr(batch, name).flatten())
            for name, question in self.questions.items()
        }
        return {"codes": torch.stack(losses), **answers}


@torch.no_grad()
def look_along_the_melody(attention: nn.Module, dim: int) -> None:
    """Let one head begin by attending from each code to the chroma frame of the same moment.

    Positions are waves of falling frequencies. Code t stands at t + OFFSET and its chroma frame
    near t * SLOWER: two waves whose frequencies differ by that factor agree there. Found by
    training alone, this would take longer than two cores have.
    """
    frequencies = 10000 ** (-torch.arange(dim // 2) / (dim // 2 - 1))
    apart = int((frequencies > SLOWER).sum())  # how much further a wave is that much slower
    slower = float(frequencies[apart])
    width = dim // attention.num_heads
    used = torch.arange(width // 2)
    # In the middle of the clip the line is exact.
    lag = slower * OFFSET - (SLOWER - slower) * SECONDS * song.FRAME_RATE / 2
    shift = frequencies[used] * lag
    query, key = torch.zeros(2, 2, width // 2, 2, dim // 2)
    query[0, used, 0, used + apart], query[0, used, 1, used + apart] = shift.cos(), shift.sin()
    query[1, used, 0, used + apart], query[1, used, 1, used + apart] = -shift.sin(), shift.cos()
    key[0, used, 0, used] = key[1, used, 1, used] = 1.0
    attention.in_proj_weight[:width] = SHARPNESS * query.flatten(0, 1).flatten(1)
    attention.in_proj_weight[dim : dim + width] = SHARPNESS * key.flatten(0, 1).flatten(1)


@torch.no_grad()
def look_at_the_text(attention: nn.Module, projection: nn.Linear, dim: int) -> None:
    """Let another head begin by attending from every position to all words alike.

    The bias of the projection of text marks words; positions' slowest waves are nearly constant.
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
    """Train `model` on the clips numbered `drawn`, or go on with the state that is in `folder`."""
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
        batch = replace(batch, heard=with_mistakes(batch.codes, rng)).to(device)
        with precision(device):
            losses = model(batch)
        answers = sum(losses[name] for name in QUESTIONS)
        run.update((losses["codes"] * levels).sum() + ASKED_WEIGHT * answers)
        if step % REPORT_EVERY == 0 or step + 1 == steps:
            run.note(step, **measure(model, *held_out(), device))
    return model.eval()


def optimizers(model: Demo, rate: float) -> list[Optimizer]:
    """Muon for the decoder's matrices, which learns from fewer steps; AdamW for all else."""
    matrices = [p for p in model.lm.transformer.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, rate),
        AdamW(others, rate, (0.9, 0.98), weight_decay=0.01),
    ]


@torch.inference_mode()
def measure(model: Demo, whole: Batch, beginning: Batch, device: str) -> dict[str, float]:
    """Held-out losses; of beginnings also with another clip's text or melody, and of QUESTIONS."""
    batches = {
        "held_out": whole,
        "beginning": beginning,
        "other_text": replace(beginning, tokens=beginning.tokens.roll(1, 0)),
        "other_melody": replace(beginning, chroma=beginning.chroma.roll(1, 0)),
    }
    with precision(device):
        losses = {name: model(batch) for name, batch in batches.items()}
    codes = {name: found["codes"].mean().item() for name, found in losses.items()}
    return codes | {name: losses["beginning"][name].item() for name in QUESTIONS}
