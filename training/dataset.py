"""What the language model is trained on: synthesized clips, encoded, with captions and melodies.

No file of them is kept: clip number n is the same each time it is made.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from audiocraft.models.encodec import EncodecModel
from torch import Tensor

from musicgen.conditioning.chroma import Chroma
from training import captions, codec, configs, song, synth, text
from training.run import precision

SECONDS = 8
CHROMA_EXPONENT = 14
CHROMA_WINDOW = 2**CHROMA_EXPONENT
CHROMA_HOP = CHROMA_WINDOW // 4
MELODY_FRAMES = SECONDS * synth.SAMPLE_RATE // CHROMA_HOP + 1
CLIPS, SEED = range(18000), 3
HELD_OUT_CLIPS = 16
K = 2 * codec.CODEBOOKS  # of both sides
LONGEST_START = 8.0  # seconds into the song at which a clip may begin
# Shares of the clips.
FROM_START, WITH_MELODY, MELODY_ALONE, WITHOUT_TEXT = 0.6, 0.4, 0.7, 0.12
CUT_INSIDE = 0.4  # share of the beginnings that are cut from anywhere in a clip
MISTAKES, PASSAGE = 0.05, 5  # share of the codes that are heard wrong; frames of wrong passages


@dataclass(frozen=True)
class Kind:
    """Batches of clips, of this many frames of each."""

    frames: int
    batch: int


# What is asked of every position besides its codes, and the number of answers: the key, and how
# many frames it is until the next beat. Words decide so few of the codes that from these alone it
# takes long to learn what they mean.
QUESTIONS = {"key": 24, "beat": song.FRAME_RATE + 1}

# Only the beginning of a clip has to be guessed from text and melody, the rest follows from what
# was heard: a model learns what words mean from many beginnings.
BEGINNING = Kind(80, 40)
WHOLE = Kind(SECONDS * song.FRAME_RATE, 8)


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
        self.extractor = Chroma(synth.SAMPLE_RATE, configs.N_CHROMA, CHROMA_EXPONENT, argmax=True)
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
        with precision(self.device):
            codes = encode(self.encodec, torch.from_numpy(wav).to(self.device))
        return Clip(drawn, start, codes.short().cpu(), lead, mix)

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

    def held_out(self, kind: Kind) -> Batch:
        """Clips that are never trained on."""
        indices = list(range(codec.HELD_OUT, codec.HELD_OUT + HELD_OUT_CLIPS))
        return self.batch(kind, indices, np.random.default_rng(SEED))

    def _first(self, kind: Kind, rng: np.random.Generator) -> int:
        """Which frame of a clip comes first."""
        inside = kind.frames < WHOLE.frames and rng.random() < CUT_INSIDE
        return int(rng.integers(WHOLE.frames - kind.frames)) if inside else 0

    def _melody(self, clip: Clip, first: int, rng: np.random.Generator) -> Tensor:
        # A melody's frames are longer than the codes': it can only begin where the clip does.
        if first or rng.random() >= WITH_MELODY:
            return self.no_melody
        return clip.lead if rng.random() < MELODY_ALONE else clip.mix


def encode(encodec: EncodecModel, wav: Tensor) -> Tensor:
    """wav [2, N] -> codes [K, T], left and right interleaved."""
    left, right = encodec.encode(wav[:, None])[0]
    return torch.stack([left, right], dim=1).flatten(0, 1)


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


def _key(drawn: song.Song) -> int:
    return 12 * (drawn.mode == "minor") + drawn.tonic


def _until_beat(clip: Clip, first: int, frames: int) -> Tensor:
    """How many frames it is until a beat, from frame `first` of the clip on [frames]."""
    return -(clip.start + first + torch.arange(frames)) % clip.song.beat_frames
