"""The workload: shapes of published checkpoints, random weights, and the bytes of a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from musicgen.decoder.weights import LMConfig, decoder_shapes

FRAME_RATE = 50
MAX_SECONDS = 30.0  # one window
TEXT = 12  # embeddings of a text prompt of usual length
MELODY = 235  # embeddings of a chromagram; melody models pad it to this length
WEIGHT_STD = 0.02
POOL_SLACK = 1 << 20  # elements; tensors start at different offsets up to this one


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
    """`batch` clips of `seconds` each, decoded with guidance and without an audio prompt.

    With a melody model each clip has a different melody or, if `melodies` is False, none.
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
        """Returns the decode steps of a clip: its frames plus the tail of the delay pattern."""
        return self.frames + max(self.config.delays)

    @property
    def text_length(self) -> int:
        return TEXT

    @property
    def melody_length(self) -> int:
        """Returns the number of melody embeddings; 0 for a model without melody conditioning."""
        return 0 if self.config.cross_attention else MELODY

    @property
    def prefix_length(self) -> int:
        """Returns the number of positions before the codes."""
        return 0 if self.config.cross_attention else self.melody_length + self.text_length

    @property
    def shared_prefix(self) -> tuple[int, int]:
        """Returns how many positions of a clip's conditional and unconditional row are shared.

        All rows without a melody begin with the same positions.
        """
        return (0 if self.melodies else self.melody_length, self.melody_length)

    @property
    def reused_positions(self) -> int:
        """Returns the positions of all rows that are shared, minus the one copy that is read."""
        return max(0, self.batch * sum(self.shared_prefix) - self.melody_length)

    @property
    def cross_length(self) -> int:
        """Returns the positions that cross-attention reads."""
        return self.text_length if self.config.cross_attention else 0

    @property
    def half(self) -> torch.dtype:
        """Returns the baselines' data type: float16 on a GPU, float32 on the CPU."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def condition(self) -> Tensor:
        """Returns the condition of a clip, [prefix or cross length, dim] float32 on the CPU.

        Without a melody its positions are zeros, like those of the unconditional row.
        """
        length = self.prefix_length or self.cross_length
        random = torch.Generator().manual_seed(1)
        condition = torch.randn(length, self.config.dim, generator=random)
        condition[: self.shared_prefix[0]] = 0
        return condition

    def prompt(self, frames: int) -> Tensor:
        """Returns random codes for a clip to continue, [K, frames] on the CPU."""
        shape = (self.config.n_q, frames)
        return torch.randint(
            self.config.card, shape, generator=torch.Generator().manual_seed(frames)
        )

    def with_batch(self, batch: int) -> "Work":
        return replace(self, batch=batch)

    def tiny(self) -> "Work":
        """Returns one second of one clip with a tiny model of the same kind."""
        model = "tiny" if self.config.cross_attention else "tiny-stereo-melody"
        return replace(self, model=model, seconds=1.0, batch=1)


@dataclass(frozen=True)
class Storage:
    """Bytes per element of a system's weights, and of its keys and values."""

    weight: int
    cache: int


def step_bytes(work: Work, storage: Storage) -> float:
    """Returns the bytes that one step must read, on average over the clip.

    Each weight and each key and value is read once.

    weights   layers * (4 D^2 + 2 D F  [+ 2 D^2: query and output of cross-attention]) + K card D
    cache     2 * layers * D * (2 B (prefix + (steps + 1) / 2  [+ cross length]) - (R - 1) * melody)

    D is the width, F the feed-forward width, B the clips (two rows each, conditional and
    unconditional), K the codebooks, R the rows without a melody, whose first positions are the same
    and are read once. Embeddings, norms, activations and writes are small and not counted.
    """
    config = work.config
    attention = 6 if config.cross_attention else 4
    layer = attention * config.dim**2 + 2 * config.dim * config.ffn_dim
    weights = config.num_layers * layer + config.n_q * config.card * config.dim
    context = work.prefix_length + (work.steps + 1) / 2 + work.cross_length
    positions = 2 * work.batch * context - work.reused_positions
    cache = 2 * config.num_layers * config.dim * positions
    return weights * storage.weight + cache * storage.cache


def random_state_dict(config: LMConfig) -> dict[str, Tensor]:
    """Returns float16 weights of a decoder under audiocraft's names; always the same.

    All matrices are views of one pool of random numbers, so even the largest decoder is made
    quickly and takes little memory. A system must copy them when it loads them; otherwise all of
    its weights would fit into the processor's cache.
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
