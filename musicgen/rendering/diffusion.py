"""Codes -> wav by Multi-Band Diffusion: the sum of one diffusion model's output per frequency band.

San Roman et al. 2023, "From Discrete Tokens to High-Fidelity Audio Using Multi-Band Diffusion".
The networks, schedules and processors are audiocraft's. The sampling loop is that of its
`NoiseSchedule.generate_subsampled`, the equalizer that of `MultiBandDiffusion.re_eq`, for one clip
at a time and with a random generator for each clip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from julius.bands import SplitBands
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode
from torch import Tensor, nn
from tqdm import tqdm

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.checkpoints.configuration import select_sections
from musicgen.checkpoints.limits import check_numbers
from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.reading import damage_reported
from musicgen.errors import WeightsError
from musicgen.rendering.audiocraft import (
    DiffusionUnet,
    MultiBandProcessor,
    NoiseSchedule,
    SampleProcessor,
    betas_from_alpha_bar,
    get_diffusion_model,
    get_processor,
)
from musicgen.rendering.codec import Codec
from musicgen.rendering.windows import crossfaded, padded

# The steps that are visited of the 1000 that the models were trained on: 999, 949, ... 49, 0.
STEPS = [*range(1000)[::-50], 0]
EQUALIZER_BANDS = 32
PIECE = 2**20  # samples that are split into bands at a time: 33 s at 32 kHz
# Frames: 30 s and 2 s. Longer clips are denoised in overlapping windows, crossfaded at every step
# ("MultiDiffusion", Bar-Tal et al. 2023), because a network's activations take 60 MB per second of
# stereo. Its receptive field is short; only the statistics of its normalization depend on the
# whole window.
WINDOW, OVERLAP = 1500, 100


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


# Upstream's file holds one OmegaConf configuration per band. These are all classes and types that
# its pickle refers to. OmegaConf's cache of resolved values, in which hydra stores a date, is a
# defaultdict. torch cannot restore one, so a plain dictionary takes its place.
CONFIGURATION = (
    DictConfig,
    ListConfig,
    ContainerMetadata,
    Metadata,
    AnyNode,
    Any,
    (_plain_dict, "collections.defaultdict"),
    dict,
    list,
    int,
)
# Settings that are read of a band's configuration.
SETTINGS = ("channels", "diffusion_unet", "processor", "schedule")
# Number -> the largest accepted value, far above that of upstream's models.
LIMITS: dict[str, int | float] = {
    "channels": 2**3,
    "diffusion_unet.hidden": 2**12,
    "diffusion_unet.depth": 16,
    "diffusion_unet.res_blocks": 16,
    "diffusion_unet.kernel": 2**8,
    "diffusion_unet.stride": 2**6,
    "diffusion_unet.growth": 16.0,
    "diffusion_unet.max_channels": 2**16,
    "diffusion_unet.codec_dim": 2**13,
    "processor.n_bands": 2**6,
    "schedule.num_steps": 2**14,
}


@dataclass(frozen=True)
class Step:
    """One step back along the chain: x <- (x - shrink * estimate) / scale + sigma * noise."""

    number: int
    shrink: float
    scale: float
    sigma: float


@dataclass(frozen=True)
class Band:
    """The model of one frequency band, and the constants of its sampling loop."""

    model: DiffusionUnet
    processor: SampleProcessor
    steps: list[Step]
    clip: float
    noise_scale: float

    def sample(
        self,
        condition: Tensor,
        length: int,
        generator: torch.Generator,
        progress: Callable[[], object],
    ) -> Tensor:
        """condition [C, D, T] -> the band's wav [C, 1, length]; `progress` is called at each step.

        All channels share their noise, so equal codes left and right give equal sound: a centred
        voice stays centred, and a sum to mono cancels nothing. Independent noise would give each
        side its own detail and phase. Each channel equals the output of a mono model for the
        channel's codes and the same seed.
        """
        shape = (1, 1, length)
        channels, device = condition.shape[0], condition.device

        def noise() -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=generator.device)
            return drawn.to(device) * self.noise_scale

        current = noise().expand(channels, -1, -1)
        for step in self.steps:
            estimate = self.estimate(current, step.number, condition)
            # `current` stays in fp32: the last steps are smaller than the resolution of fp16.
            current = (current - step.shrink * self.noise_scale * estimate) / step.scale
            if step.sigma > 0:
                current = current + step.sigma * noise()
            if self.clip:
                current = current.clamp(-self.clip, self.clip)
            progress()
        return self.restore(current)

    def restore(self, current: Tensor) -> Tensor:
        """The band's wav [C, 1, N]: undoes the processor's flattening of the spectrum."""
        if not isinstance(self.processor, MultiBandProcessor):
            return current
        margin = self.processor.split_bands.lowpass.half_size
        parts = [
            self.processor.return_sample(current[..., read])[..., keep]
            for read, keep in padded(current.shape[-1], PIECE, margin)
        ]
        return torch.cat(parts, dim=-1)

    def estimate(self, current: Tensor, number: int, condition: Tensor) -> Tensor:
        """The noise in `current` [C, 1, T * hop] at a step, in float32; condition [C, D, T]."""
        hop = current.shape[-1] // condition.shape[-1]

        def window(start: int, stop: int) -> Tensor:
            part = current[..., start * hop : stop * hop]
            with half_precision(current.device):
                noise: Tensor = self.model(
                    part, number, condition=condition[..., start:stop]
                ).sample
            return noise.float()

        return crossfaded(window, current, hop, WINDOW, OVERLAP)


@dataclass
class _Decoding:
    """A clip in progress: condition [C, D, T], EnCodec's wav and the bands' sum, both [C, 1, N]."""

    condition: Tensor
    reference: Tensor
    wav: Tensor
    generator: torch.Generator


class MultiBandDiffusion:
    """Renders the codes of `codec`, whose embeddings are the condition and whose wav is the
    reference of the equalizer.

    Upstream uses the EnCodec of facebook/musicgen-small. Every MusicGen checkpoint contains that
    mono EnCodec, the stereo ones once for both channels, so the checkpoint's own is used.
    """

    def __init__(self, checkpoint: Checkpoint, codec: Codec, device: torch.device) -> None:
        self.codec = codec
        self.device = device
        self.bands = load_bands(checkpoint.diffusion_file, codec, device)
        self.split = SplitBands(codec.sample_rate, n_bands=EQUALIZER_BANDS).to(device)

    @torch.inference_mode()
    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone.

        The channels of a stereo clip are a batch of two. Clips run one after the other, because
        the sums of a convolution may depend on the batch size.
        """
        clips = [self._begin(*pair) for pair in zip(codes, seeds, strict=True)]
        for number, band in enumerate(self.bands, 1):
            with tqdm(
                desc=f"diffusion band {number}/{len(self.bands)}",
                total=len(clips) * len(band.steps),
                unit="step",
                mininterval=1.0,
            ) as bar:
                for clip in clips:
                    length = clip.reference.shape[-1]
                    clip.wav += band.sample(clip.condition, length, clip.generator, bar.update)
        return torch.stack([self._equalize(clip.wav, clip.reference)[:, 0].cpu() for clip in clips])

    def _begin(self, codes: Tensor, seed: int) -> _Decoding:
        """A clip with codes [K, T] (interleaved if stereo), before its first band."""
        condition = self.codec.embed(codes)
        reference = self.codec.render(condition)
        return _Decoding(
            condition=condition,
            reference=reference,
            wav=torch.zeros_like(reference),
            generator=torch.Generator(self.device).manual_seed(seed),
        )

    def _equalize(self, wav: Tensor, reference: Tensor) -> Tensor:
        """wav [C, 1, N] with the level of `reference` in each of 32 mel bands, by channel."""
        return torch.stack([self._match(*pair) for pair in zip(wav, reference, strict=True)])

    def _match(self, wav: Tensor, reference: Tensor) -> Tensor:
        """The same for one channel, [1, N]."""
        # A silent band stays silent; audiocraft would divide by zero.
        gains = self._levels(reference) / self._levels(wav).clamp_min(1e-12)
        parts = [torch.tensordot(gains, bands, dims=1) for bands in self._split(wav)]
        return torch.cat(parts, dim=-1)

    def _levels(self, wav: Tensor) -> Tensor:
        """Standard deviation of wav [1, N] in each band [32]."""
        count = wav.shape[-1]
        total, squares = torch.zeros(2, EQUALIZER_BANDS, dtype=torch.float64, device=wav.device)
        for bands in self._split(wav):
            total += bands.sum(dim=(1, 2), dtype=torch.float64)
            squares += bands.square().sum(dim=(1, 2), dtype=torch.float64)
        variance = (squares - total.square() / count) / (count - 1)
        levels: Tensor = variance.clamp_min(0).sqrt().float()
        return levels

    def _split(self, wav: Tensor) -> Iterator[Tensor]:
        """Bands [32, 1, n] of wav [1, N], in pieces: all at once would take 32 times its memory."""
        margin = self.split.lowpass.half_size
        for read, keep in padded(wav.shape[-1], PIECE, margin):
            yield self.split(wav[:, read])[..., keep]


def load_bands(path: Path, codec: Codec, device: torch.device) -> list[Band]:
    """The bands in upstream's file `path`; raises WeightsError if they do not fit `codec`."""
    package = read_package(path, CONFIGURATION)
    with damage_reported(path):
        bands = [package[i] for i in range(package["n_bands"])]
        configs = [read_config(path, band["cfg"]) for band in bands]
        for config in configs:
            check_fit(path, package["sample_rate"], config.diffusion_unet.codec_dim, codec)
        return [
            load_band(config, band, package["sample_rate"], device)
            for config, band in zip(configs, bands, strict=True)
        ]


def read_config(path: Path, config: DictConfig) -> DictConfig:
    """The settings of a band that its model, processor and schedule are built from."""
    selected = select_sections(path, OmegaConf.to_container(config), SETTINGS)
    check_numbers(path, {name: OmegaConf.select(selected, name) for name in LIMITS}, LIMITS)
    return selected


def check_fit(path: Path, sample_rate: int, width: int, codec: Codec) -> None:
    """Raise WeightsError unless the diffusion fits the codec's sample rate and latent width."""
    expected = (codec.sample_rate, codec.model.config.dimension)
    if (sample_rate, width) != expected:
        raise WeightsError(
            f"{path} is for a codec of {sample_rate} Hz and width {width}, not for the one beside "
            f"it ({expected[0]} Hz, {expected[1]}); fetch MusicGen's diffusion weights."
        )


def load_band(
    config: DictConfig, package: dict[str, Any], sample_rate: int, device: torch.device
) -> Band:
    """One band from its configuration and its `model_state` and `processor_state`."""
    with torch.device("meta"):
        model = get_diffusion_model(config)
    model.load_state_dict(package["model_state"], assign=True)
    model.eval().to(device).requires_grad_(False)
    if device.type == "cuda":
        halve_convolutions(model)
    processor = get_processor(config.processor, sample_rate)
    processor.load_state_dict(package["processor_state"])
    processor.to(device)
    schedule = NoiseSchedule(**config.schedule, device="cpu")
    return Band(model, processor, plan(schedule), schedule.clip, schedule.noise_scale)


def plan(schedule: NoiseSchedule) -> list[Step]:
    """The steps from each of `STEPS` to the next, with upstream's "beta tilde" variance."""
    alpha_bars = schedule.get_alpha_bar()[STEPS]  # remaining fraction of the signal: 0.03 ... 1
    now, then = alpha_bars[:-1], alpha_bars[1:]
    betas = betas_from_alpha_bar(alpha_bars.flip(0)).flip(0)[:-1]
    variances = (1 - then) / (1 - now) * betas
    variances[-1] = 0  # no later step would remove noise that is added here
    columns = (betas / (1 - now).sqrt(), (1 - betas).sqrt(), variances.sqrt())
    rows = zip(STEPS[:-1], *(column.tolist() for column in columns), strict=True)
    return [Step(*row) for row in rows]


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to fp16 convolutions on a GPU; norms and sums stay in fp32. Disabled on a CPU."""
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")


def halve_convolutions(model: nn.Module) -> None:
    """Convert the convolutions' weights to fp16 once; autocast would do so at every step."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.half()
