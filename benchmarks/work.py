"""What is decoded: shapes of published checkpoints, random weights, and the bytes of a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from musicgen.decoder.weights import LMConfig, decoder_shapes

FRAME_RATE = 50
MAX_SECONDS = 30.0  # one window
TEXT = 12  # embeddings of a description of usual length
MELODY = 235  # embeddings of a chromagram, as melody models pad it
WEIGHT_STD = 0.02
POOL_SLACK = 1 << 20  # elements by which tensors of one size differ in their place


def _config(dim: int, num_heads: int, num_layers: int, *, stereo: bool, melody: bool) -> LMConfig:
    return LMConfig(
        dim=dim,
        num_heads=num_heads,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        n_q=8 if stereo else 4,
        card=2048,
        delays=(0, 0, 1, 1, 2, 2, 3, 3) if stereo else (0, 1, 2, 3),
        cross_attention=not melody,
    )


SMALL, MEDIUM, LARGE = (1024, 16, 24), (1536, 24, 48), (2048, 32, 48)
PUBLISHED = {
    "small": _config(*SMALL, stereo=False, melody=False),
    "medium": _config(*MEDIUM, stereo=False, melody=False),
    "large": _config(*LARGE, stereo=False, melody=False),
    "melody": _config(*MEDIUM, stereo=False, melody=True),
    "melody-large": _config(*LARGE, stereo=False, melody=True),
    "stereo-small": _config(*SMALL, stereo=True, melody=False),
    "stereo-medium": _config(*MEDIUM, stereo=True, melody=False),
    "stereo-large": _config(*LARGE, stereo=True, melody=False),
    "stereo-melody": _config(*MEDIUM, stereo=True, melody=True),
    "stereo-melody-large": _config(*LARGE, stereo=True, melody=True),
}
CONFIGS = {
    "tiny": _config(64, 4, 2, stereo=False, melody=False),
    "tiny-stereo-melody": _config(64, 4, 2, stereo=True, melody=True),
    **PUBLISHED,
}


@dataclass(frozen=True)
class Work:
    """`batch` clips of so many seconds, decoded from scratch with guidance.

    Where the model takes melodies, each has one of its own; or, without `melodies`, none.
    """

    model: str
    seconds: float
    batch: int
    device: torch.device
    melodies: bool = True

    @property
    def config(self) -> LMConfig:
        return CONFIGS[self.model]

    @property
    def frames(self) -> int:
        return round(self.seconds * FRAME_RATE)

    @property
    def steps(self) -> int:
        """Decode steps of the clip: its frames and the delay pattern's tail."""
        return self.frames + max(self.config.delays)

    @property
    def text_length(self) -> int:
        return TEXT

    @property
    def melody_length(self) -> int:
        """Embeddings of the melody; 0 for a model that takes none."""
        return 0 if self.config.cross_attention else MELODY

    @property
    def prefix_length(self) -> int:
        """Positions in front of the codes."""
        return 0 if self.config.cross_attention else self.melody_length + self.text_length

    @property
    def shared(self) -> tuple[int, int]:
        """Of each row of a clip, how many positions are those of no melody, which all share."""
        return (0 if self.melodies else self.melody_length, self.melody_length)

    @property
    def repeated(self) -> int:
        """Positions that rows share, of all rows together, but for the one time they are read."""
        return max(0, self.batch * sum(self.shared) - self.melody_length)

    @property
    def cross_length(self) -> int:
        """Positions that cross-attention sees."""
        return self.text_length if self.config.cross_attention else 0

    @property
    def half(self) -> torch.dtype:
        """What others compute in here: float16 on a GPU, float32 on the CPU."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def condition(self) -> Tensor:
        """What a clip is conditioned on, [prefix or cross length, dim] float32 on the CPU.

        No melody is zeros, as the null is.
        """
        length = self.prefix_length or self.cross_length
        random = torch.Generator().manual_seed(1)
        condition = torch.randn(length, self.config.dim, generator=random)
        condition[: self.shared[0]] = 0
        return condition

    def prompt(self, frames: int) -> Tensor:
        """Random codes for a clip to go on from, [K, frames] on the CPU."""
        shape = (self.config.n_q, frames)
        return torch.randint(
            self.config.card, shape, generator=torch.Generator().manual_seed(frames)
        )

    def with_batch(self, batch: int) -> "Work":
        return replace(self, batch=batch)

    def tiny(self) -> "Work":
        """One second of one clip with the smallest model of the kind."""
        model = "tiny" if self.config.cross_attention else "tiny-stereo-melody"
        return replace(self, model=model, seconds=1.0, batch=1)


@dataclass(frozen=True)
class Storage:
    """Bytes that a system keeps an element of the weights, and of keys and values, in."""

    weight: int
    cache: int


def step_bytes(work: Work, storage: Storage) -> float:
    """Bytes that one step must read, on average over the clip: each weight once, each key once.

    weights   layers * (4 D^2 + 2 D F  [+ 2 D^2: query and output of cross-attention]) + K card D
    cache     2 * layers * D * (2 B (prefix + (steps + 1) / 2  [+ cross length]) - (R - 1) * melody)

    D the width, F the feed-forward's, B the clips (two rows each: conditioned and not), K the
    codebooks, R the rows that begin with no melody: those positions are the same, and once is
    enough. Not counted, as they are small: embeddings, norms, activations, what is written.
    """
    config = work.config
    attention = 6 if config.cross_attention else 4
    layer = attention * config.dim**2 + 2 * config.dim * config.ffn_dim
    weights = config.num_layers * layer + config.n_q * config.card * config.dim
    context = work.prefix_length + (work.steps + 1) / 2 + work.cross_length
    positions = 2 * work.batch * context - work.repeated
    cache = 2 * config.num_layers * config.dim * positions
    return weights * storage.weight + cache * storage.cache


def random_state(config: LMConfig) -> dict[str, Tensor]:
    """Weights of a decoder as audiocraft names them, float16; always the same.

    All matrices are places in one pool of random numbers, so that even the largest decoder is
    made at once and takes no memory. Whoever loads them must make copies, or its weights would
    fit into the processor's cache.
    """
    shapes = decoder_shapes(config)
    size = max(math.prod(shape) for shape in shapes.values()) + POOL_SLACK
    pool = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return dict(_tensors(shapes, pool.mul_(WEIGHT_STD).half()))


def _tensors(shapes: dict[str, tuple[int, ...]], pool: Tensor) -> Iterator[tuple[str, Tensor]]:
    for index, (name, shape) in enumerate(shapes.items()):
        start = index * 7919 % POOL_SLACK
        matrix = pool[start : start + math.prod(shape)].view(shape)
        if len(shape) > 1:
            yield name, matrix
        else:
            yield name, torch.full(shape, float(name.endswith("weight")), dtype=pool.dtype)
