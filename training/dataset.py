"""The language model's training data: encoded synthesized clips with captions and melodies.

Clips are not stored in files: clip number n is the same each time it is made.
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
K = 2 * codec.CODEBOOKS  # both channels
LONGEST_START = 8.0  # latest start of a clip in its song, seconds
# Shares of the clips.
FROM_START, WITH_MELODY, MELODY_ALONE, WITHOUT_TEXT = 0.6, 0.4, 0.7, 0.12
CUT_INSIDE = 0.4  # share of the short batches' clips that are cut from inside a clip
MISTAKES, PASSAGE = 0.05, 5  # share of wrong input codes; frames of wrong passages


@dataclass(frozen=True)
class Kind:
    """The size of a batch: `batch` clips of `frames` frames."""

    frames: int
    batch: int


# Auxiliary targets of every position -> number of classes: the key, and the frames until the next
# beat. The text determines so few codes that its meaning is learned slowly from the codes alone.
AUXILIARY = {"key": 24, "beat": song.FRAME_RATE + 1}

# Only the beginning of a clip depends mainly on text and melody; later codes follow from earlier
# ones. So many beginnings teach the meaning of the text.
BEGINNING = Kind(80, 40)
WHOLE = Kind(SECONDS * song.FRAME_RATE, 8)


@dataclass(frozen=True)
class Clip:
    """A training clip: codes [K, T], pitch classes of lead and mix [frames].

    `start` is its first frame in the song.
    """

    song: song.Song
    start: int
    codes: Tensor
    lead: Tensor
    mix: Tensor


@dataclass(frozen=True)
class Batch:
    """A training batch.

    Target codes and input codes [B, K, T], tokens [B, L], has_text [B] (0 or 1), chroma [B, frames]
    as pitch classes, and the AUXILIARY targets [B, T].
    """

    codes: Tensor
    inputs: Tensor
    tokens: Tensor
    has_text: Tensor
    chroma: Tensor
    key: Tensor
    beat: Tensor

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Clips:
    """Clips by number, always the same. Each is made when first used, then kept as codes."""

    def __init__(self, encodec: EncodecModel, device: str) -> None:
        self.encodec, self.device = encodec, device
        self.extractor = Chroma(synth.SAMPLE_RATE, configs.N_CHROMA, CHROMA_EXPONENT, argmax=True)
        self.tokenizer = text.tokenizer()
        # The server's chroma for requests without a melody.
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
        """Returns the pitch classes [frames] of wav [1, N]."""
        return self.extractor(wav)[0].argmax(-1).to(torch.uint8)

    def batch(self, kind: Kind, indices: list[int], rng: np.random.Generator) -> Batch:
        """Returns these clips, each with a random caption and sometimes with its melody."""
        clips = [self.clip(index) for index in indices]
        firsts = [self._first(kind, rng) for _ in clips]
        captioned = [captions.caption(clip.song, rng) for clip in clips]
        tokens = torch.tensor([encoded.ids for encoded in self.tokenizer.encode_batch(captioned)])
        has_text = torch.from_numpy(rng.random(len(clips)) >= WITHOUT_TEXT)
        cuts = list(zip(clips, firsts, strict=True))
        codes = torch.stack([clip.codes[:, n : n + kind.frames] for clip, n in cuts]).long()
        return Batch(
            codes=codes,
            inputs=codes,
            tokens=tokens,
            has_text=has_text.float(),
            chroma=torch.stack([self._melody(clip, first, rng) for clip, first in cuts]).long(),
            key=torch.tensor([[_key(clip.song)] for clip in clips]).expand(-1, kind.frames),
            beat=torch.stack([_until_beat(clip, first, kind.frames) for clip, first in cuts]),
        )

    def held_out(self, kind: Kind) -> Batch:
        """Returns a batch of clips that are never used for training."""
        indices = list(range(codec.HELD_OUT, codec.HELD_OUT + HELD_OUT_CLIPS))
        return self.batch(kind, indices, np.random.default_rng(SEED))

    def _first(self, kind: Kind, rng: np.random.Generator) -> int:
        """Returns the first frame that is used of a clip."""
        inside = kind.frames < WHOLE.frames and rng.random() < CUT_INSIDE
        return int(rng.integers(WHOLE.frames - kind.frames)) if inside else 0

    def _melody(self, clip: Clip, first: int, rng: np.random.Generator) -> Tensor:
        # Chroma frames are longer than code frames, so a melody must start with its clip.
        if first or rng.random() >= WITH_MELODY:
            return self.no_melody
        return clip.lead if rng.random() < MELODY_ALONE else clip.mix


def encode(encodec: EncodecModel, wav: Tensor) -> Tensor:
    """Returns the codes [K, T] of wav [2, N], left and right interleaved."""
    left, right = encodec.encode(wav[:, None])[0]
    return torch.stack([left, right], dim=1).flatten(0, 1)


def with_mistakes(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns codes [B, K, T] of which some are replaced by another clip's.

    Single codes are replaced, and passages of one channel. A model that has only seen correct codes
    does not recover from its first wrong one: it follows a beat that came too early instead of the
    beat so far.
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
    """Returns the frames until the next beat, [frames], from frame `first` of the clip on."""
    return -(clip.start + first + torch.arange(frames)) % clip.song.beat_frames
