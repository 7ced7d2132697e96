"""Codes -> wav by Multi-Band Diffusion: one diffusion model per frequency band, their sounds added.

San Roman et al. 2023, "From Discrete Tokens to High-Fidelity Audio Using Multi-Band Diffusion".
The networks, schedules and processors are audiocraft's; the sampling loop is its
`NoiseSchedule.generate_subsampled` and the equalizer its `MultiBandDiffusion.re_eq`, for one clip
at a time and with a generator of the clip's own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from julius.bands import SplitBands
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode
from torch import Tensor, nn
from tqdm import tqdm

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.checkpoints.files import damage_reported, read_package
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

# Of the 1000 steps that the models were trained on, those that are visited: 999, 949, ... 49, 0.
STEPS = [*range(1000)[::-50], 0]
EQUALIZER_BANDS = 32
PIECE = 2**20  # samples that are split into bands at a time: 33 s
# Frames that a network sees at once: 30 s. Longer clips are denoised in windows that overlap by 2 s
# and are put together at every step ("MultiDiffusion", Bar-Tal et al. 2023), as the network's
# activations take 60 MB a second of stereo. Its sight is short; only the statistics of its
# normalization reach over all that it is given.
WINDOW, OVERLAP = 1500, 100


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


# Upstream's file holds one OmegaConf configuration per band. These are all the names that its
# pickle mentions: containers, their leaves, and the types that their metadata records. The cache
# of resolved values, in which hydra leaves the date, is a defaultdict, which torch would not fill.
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


@dataclass(frozen=True)
class Step:
    """One step back along the chain: x <- (x - shrink * estimate) / scale + sigma * noise."""

    number: int
    shrink: float
    scale: float
    sigma: float


@dataclass(frozen=True)
class Band:
    """The model of one frequency band and what its sampling needs."""

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

        All channels share their noise. What is equal left and right then stays equal, in the
        middle and whole when summed to mono; noises of their own would put different detail and
        phase on the two sides of every centred voice and kick. Where the codes differ, so does
        the sound. And each channel is what a mono model makes of its codes with the same seed.
        """
        shape = (1, 1, length)
        channels, device = condition.shape[0], condition.device

        def noise() -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=generator.device)
            return drawn.to(device) * self.noise_scale

        current = noise().expand(channels, -1, -1)
        for step in self.steps:
            estimate = self.estimate(current, step.number, condition)
            # The chain itself stays in fp32: its last steps are far smaller than fp16 resolves.
            current = (current - step.shrink * self.noise_scale * estimate) / step.scale
            if step.sigma > 0:
                current = current + step.sigma * noise()
            if self.clip:
                current = current.clamp(-self.clip, self.clip)
            progress()
        return self.restore(current)

    def restore(self, current: Tensor) -> Tensor:
        """The band's wav [C, 1, N] of what its model made, whose spectrum is more like noise's."""
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
    """One clip under way: condition [C, D, T], EnCodec's wav and the bands' sum, both [C, 1, N]."""

    condition: Tensor
    reference: Tensor
    wav: Tensor
    generator: torch.Generator


class MultiBandDiffusion:
    """Renders the codes of `codec`, which gives the condition and the spectrum to match.

    Upstream takes EnCodec from facebook/musicgen-small for this. Every MusicGen checkpoint holds
    that same mono EnCodec, the stereo ones once for both channels, so the checkpoint's own serves.
    """

    def __init__(self, checkpoint: Checkpoint, codec: Codec, device: torch.device) -> None:
        self.codec = codec
        self.device = device
        self.bands = load_bands(checkpoint.diffusion_file, codec, device)
        self.split = SplitBands(codec.sample_rate, n_bands=EQUALIZER_BANDS).to(device)

    @torch.inference_mode()
    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone.

        A stereo clip's left and right are a batch of two; clips follow one another, because a
        convolution's sums may depend on the batch's size.
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
        """Codes [K, T], interleaved if stereo -> a clip without any band yet."""
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
        # A band without sound stays without; audiocraft would divide by its zero.
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
        """Bands [32, 1, n] of wav [1, N], piece by piece: all of them would be 32 copies."""
        margin = self.split.lowpass.half_size
        for read, keep in padded(wav.shape[-1], PIECE, margin):
            yield self.split(wav[:, read])[..., keep]


def load_bands(path: Path, codec: Codec, device: torch.device) -> list[Band]:
    """The bands of upstream's file `path`; raises WeightsError if they are not for `codec`."""
    package = read_package(path, CONFIGURATION)
    with damage_reported(path):
        bands = [package[i] for i in range(package["n_bands"])]
        for band in bands:
            check_fit(path, package["sample_rate"], band["cfg"].diffusion_unet.codec_dim, codec)
        return [load_band(band, package["sample_rate"], device) for band in bands]


def check_fit(path: Path, sample_rate: int, width: int, codec: Codec) -> None:
    """Raise unless the diffusion is for the codec's sample rate and latent width."""
    expected = (codec.sample_rate, codec.model.config.dimension)
    if (sample_rate, width) != expected:
        raise WeightsError(
            f"{path} is for a codec of {sample_rate} Hz and width {width}, not for the one beside "
            f"it ({expected[0]} Hz, {expected[1]}); fetch MusicGen's diffusion weights."
        )


def load_band(package: dict[str, Any], sample_rate: int, device: torch.device) -> Band:
    """One band from its `cfg`, `model_state` and `processor_state`."""
    config = package["cfg"]
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
    alpha_bars = schedule.get_alpha_bar()[STEPS]  # what is left of the signal: 0.03 ... 1
    now, then = alpha_bars[:-1], alpha_bars[1:]
    betas = betas_from_alpha_bar(alpha_bars.flip(0)).flip(0)[:-1]
    variances = (1 - then) / (1 - now) * betas
    variances[-1] = 0  # nothing would remove the noise of the last step
    columns = (betas / (1 - now).sqrt(), (1 - betas).sqrt(), variances.sqrt())
    rows = zip(STEPS[:-1], *(column.tolist() for column in columns), strict=True)
    return [Step(*row) for row in rows]


def half_precision(device: torch.device) -> torch.autocast:
    """fp16 convolutions on a GPU; norms and sums stay in fp32. Nothing on a CPU."""
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")


def halve_convolutions(model: nn.Module) -> None:
    """Keep the convolutions' weights in fp16: autocast would make the same ones at every step."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.half()
