"""Trains the language model, audiocraft's classes, on codes of synthesized stereo music.

Conditions stand before the codes as in musicgen-stereo-melody: chroma of the melody, then the
text. Each is left out at times, so that guidance has something to compare with.
"""

from dataclasses import dataclass, fields, replace
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
from torch.optim import AdamW, Muon, Optimizer

from musicgen import tiny
from musicgen.chroma import Chroma
from train_demo import captions, codec, song, synth, text
from train_demo.run import Run

SECONDS = 8
TEXT_NAME = "t5-demo"
CHROMA_EXPONENT = 14
CHROMA_WINDOW = 2**CHROMA_EXPONENT
CHROMA_HOP = CHROMA_WINDOW // 4
MELODY_FRAMES = SECONDS * synth.SAMPLE_RATE // CHROMA_HOP + 1
STEPS, RATE, SEED = 12000, 2e-3, 3
K = 8  # codebooks of both sides
LEVEL_WEIGHTS = (2.0, 1.2, 0.5, 0.3)  # the first codebooks carry pitch and rhythm
CLIPS = 14000
LONGEST_START = 8.0  # seconds into the song at which a clip may begin
# Shares of the clips.
FROM_START, WITH_MELODY, MELODY_ALONE, WITHOUT_TEXT = 0.6, 0.4, 0.7, 0.12
CUT_INSIDE = 0.4  # share of the beginnings that are cut from anywhere in a clip
MISTAKES, PASSAGE = 0.05, 5  # share of the codes that are heard wrong; frames of wrong passages
REPORT_EVERY = 100
SLOWER = synth.FRAME / CHROMA_HOP  # chroma frames of a code
OFFSET = MELODY_FRAMES + text.LENGTH  # positions before the first code: chroma, then text
SHARPNESS = 1.2
MARK, CONSTANT, ATTENTION = 0.7, 28, 11.0  # size of words' mark, constant waves, how sharply


@dataclass(frozen=True)
class Kind:
    """Batches of clips, of this many frames of each."""

    frames: int
    batch: int


# What is asked of every position besides its codes, and the number of answers: the key, and how
# many frames it is until the next beat. Words decide so few of the codes that from these alone it
# takes long to learn what they mean.
QUESTIONS = {"key": 24, "beat": song.FRAME_RATE + 1}
ASKED_LAYER, ASKED_WEIGHT = 2, 0.15

# Only the beginning of a clip has to be guessed from text and melody, the rest follows from what
# was heard: a model learns what words mean from many beginnings.
BEGINNING = Kind(80, 40)
WHOLE = Kind(SECONDS * song.FRAME_RATE, 8)
BEGINNINGS = 0.25  # share of the batches


def config() -> dict[str, Any]:
    """audiocraft's configuration of the language model."""
    values = tiny.lm_config("stereo-melody")
    values["dataset"]["segment_duration"] = SECONDS
    values["transformer_lm"] |= {"dim": 256, "num_heads": 4, "num_layers": 4, "card": codec.CARD}
    # Nothing is separated: the training melodies are clean, and Demucs has no place in so small
    # a model.
    values["conditioners"]["self_wav"]["chroma_stem"]["separator"] = "none"
    values["conditioners"]["description"]["t5"]["name"] = TEXT_NAME
    return values


@dataclass(frozen=True)
class Clip:
    """A clip as it is trained on: codes [K, T], pitch classes of lead and mix [frames].

    It begins `start` frames into the song.
    """

    song: song.Song
    start: int
    codes: Tensor
    lead: Tensor
    mix: Tensor


@dataclass(frozen=True)
class Batch:
    """codes [B, K, T] as they should be and as they are heard, tokens [B, L], has_text [B] as 0
    or 1, chroma [B, frames] pitch classes, and [B, T] the answer to each of QUESTIONS."""

    codes: Tensor
    heard: Tensor
    tokens: Tensor
    has_text: Tensor
    chroma: Tensor
    key: Tensor
    beat: Tensor

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Clips:
    """Clip number `index`, always the same. Each is made when first drawn, then kept as codes."""

    def __init__(self, encodec: EncodecModel, device: str) -> None:
        self.encodec, self.device = encodec, device
        self.extractor = Chroma(synth.SAMPLE_RATE, tiny.N_CHROMA, CHROMA_EXPONENT, argmax=True)
        self.tokenizer = text.tokenizer()
        # What the server embeds when no melody comes.
        self.no_melody = self.chroma(torch.zeros(1, 1)).repeat(MELODY_FRAMES)[:MELODY_FRAMES]
        self.clip = cache(self._make)

    @torch.inference_mode()
    def _make(self, index: int) -> Clip:
        rng = np.random.default_rng([SEED, WHOLE.frames, index])
        drawn = song.draw(rng)
        start = 0
        if rng.random() >= FROM_START:
            start = int(rng.integers(LONGEST_START * song.FRAME_RATE))
        stems = synth.render(drawn, SECONDS, start)
        wav = synth.mix(stems)
        lead, mix = (
            self.chroma(torch.from_numpy(sound).mean(0, keepdim=True))
            for sound in (stems["lead"], wav)
        )
        return Clip(drawn, start, self._encode(wav), lead, mix)

    def _encode(self, wav: np.ndarray) -> Tensor:
        """wav [2, N] -> codes [K, T], left and right interleaved."""
        with torch.autocast(self.device, torch.bfloat16):
            sides = torch.from_numpy(wav)[:, None].to(self.device)
            left, right = self.encodec.encode(sides)[0].cpu()
        return torch.stack([left, right], dim=1).flatten(0, 1).short()

    def chroma(self, wav: Tensor) -> Tensor:
        """wav [1, N] -> pitch classes [frames]."""
        return self.extractor(wav)[0].argmax(-1).to(torch.uint8)

    def batch(self, kind: Kind, indices: list[int], rng: np.random.Generator) -> Batch:
        """Those clips, each with a caption of its own and at times with its melody."""
        clips = [self.clip(index) for index in indices]
        firsts = [self._first(kind, rng) for _ in clips]
        captioned = [captions.caption(clip.song, rng) for clip in clips]
        tokens = torch.tensor([said.ids for said in self.tokenizer.encode_batch(captioned)])
        has_text = torch.from_numpy(rng.random(len(clips)) >= WITHOUT_TEXT)
        cuts = list(zip(clips, firsts, strict=True))
        codes = torch.stack([clip.codes[:, n : n + kind.frames] for clip, n in cuts]).long()
        return Batch(
            codes=codes,
            heard=codes,
            tokens=tokens,
            has_text=has_text.float(),
            chroma=torch.stack([self._melody(clip, first, rng) for clip, first in cuts]).long(),
            key=torch.tensor([[_key(clip.song)] for clip in clips]).expand(-1, kind.frames),
            beat=torch.stack([_until_beat(clip, first, kind.frames) for clip, first in cuts]),
        )

    def _first(self, kind: Kind, rng: np.random.Generator) -> int:
        """Which frame of a clip comes first."""
        inside = kind.frames < WHOLE.frames and rng.random() < CUT_INSIDE
        return int(rng.integers(WHOLE.frames - kind.frames)) if inside else 0

    def _melody(self, clip: Clip, first: int, rng: np.random.Generator) -> Tensor:
        # A melody's frames are longer than the codes': it can only begin where the clip does.
        if first or rng.random() >= WITH_MELODY:
            return self.no_melody
        return clip.lead if rng.random() < MELODY_ALONE else clip.mix


def with_mistakes(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """codes [B, K, T] of which some are another clip's: single ones, and passages of one side.

    A model that has only ever heard right codes is lost at the first wrong one of its own: it
    believes a beat that came too early more than the beat that it has kept so far.
    """
    clips, _, frames = codes.shape
    share = torch.from_numpy(2 * MISTAKES * rng.random((clips, 1, 1, 1)))
    single = torch.from_numpy(rng.random((clips, K // 2, 2, frames))) < share
    passages = torch.from_numpy(rng.random((clips, 1, 2, -(-frames // PASSAGE)))) < share
    wrong = single | passages.repeat_interleave(PASSAGE, -1)[..., :frames]
    return torch.where(wrong.flatten(1, 2), codes.roll(1, 0), codes)


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
            "self_wav": BaseConditioner(tiny.N_CHROMA, dim),
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
        melody = project["self_wav"].output_proj(F.one_hot(batch.chroma, tiny.N_CHROMA).float())
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


def _key(drawn: song.Song) -> int:
    return 12 * (drawn.mode == "minor") + drawn.tonic


def _until_beat(clip: Clip, first: int, frames: int) -> Tensor:
    """How many frames it is until a beat, from frame `first` of the clip on [frames]."""
    return -(clip.start + first + torch.arange(frames)) % clip.song.beat_frames


def train(folder: Path, encodec: EncodecModel, steps: int = STEPS, device: str = "cpu") -> Demo:
    """Train, or go on with, the language model whose state is in `folder`."""
    model = Demo().to(device)
    run = Run(folder, model, steps, optimizers(model))
    clips = Clips(encodec, device)
    levels = torch.tensor(LEVEL_WEIGHTS, device=device).repeat_interleave(2)
    levels = levels / levels.sum()
    held_out = [held_out_batch(clips, kind).to(device) for kind in (WHOLE, BEGINNING)]
    for step in run:
        rng = np.random.default_rng([SEED, step])
        kind = BEGINNING if rng.random() < BEGINNINGS else WHOLE
        indices = rng.integers(CLIPS, size=kind.batch).tolist()
        batch = clips.batch(kind, indices, rng)
        batch = replace(batch, heard=with_mistakes(batch.codes, rng)).to(device)
        with torch.autocast(device, torch.bfloat16):
            losses = model(batch)
        answers = sum(losses[name] for name in QUESTIONS)
        run.update((losses["codes"] * levels).sum() + ASKED_WEIGHT * answers)
        if step % REPORT_EVERY == 0 or step + 1 == steps:
            run.note(step, **measure(model, *held_out, device))
    return model.eval()


def optimizers(model: Demo) -> list[Optimizer]:
    """Muon for the decoder's matrices, which learns from fewer steps; AdamW for all else."""
    matrices = [p for p in model.lm.transformer.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, RATE, (0.9, 0.98), weight_decay=0.01),
    ]


def held_out_batch(clips: Clips, kind: Kind) -> Batch:
    """Clips that are never trained on."""
    indices = list(range(codec.HELD_OUT, codec.HELD_OUT + kind.batch))
    return clips.batch(kind, indices, np.random.default_rng(SEED))


@torch.inference_mode()
def measure(model: Demo, whole: Batch, beginning: Batch, device: str) -> dict[str, float]:
    """Held-out losses; of beginnings also with another clip's text or melody, and of QUESTIONS."""
    batches = {
        "held_out": whole,
        "beginning": beginning,
        "other_text": replace(beginning, tokens=beginning.tokens.roll(1, 0)),
        "other_melody": replace(beginning, chroma=beginning.chroma.roll(1, 0)),
    }
    with torch.autocast(device, torch.bfloat16):
        losses = {name: model(batch) for name, batch in batches.items()}
    codes = {name: found["codes"].mean().item() for name, found in losses.items()}
    return codes | {name: losses["beginning"][name].item() for name in QUESTIONS}
