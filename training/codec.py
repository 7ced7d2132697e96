"""Trains EnCodec with audiocraft's classes on synthesized music: mono, 32 kHz, 50 frames/s, K = 5.

With a single loss, all codes go to the tones and hats are lost, because hats last 20 ms and are
30 dB quieter. So a separate codec with a separate loss learns each of BANDS. Joined, they are one
EnCodec, whose decoder is then trained further with the codes unchanged.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from audiocraft.models.builders import get_compression_model
from audiocraft.models.encodec import EncodecModel
from omegaconf import OmegaConf
from scipy.signal import firwin
from torch import Tensor, nn
from torch.optim import AdamW

from training import configs, song, synth
from training.distance import Loss, si_sdr
from training.join import join
from training.run import Run, precision

CARD = 512
SEED = 1
COMMITMENT = 0.25
HELD_OUT = 10_000_000  # seeds from here on are never used for training
REPORT_EVERY = 50
NEAR_REST = 0.2  # share of the songs that are cut near a rest
FIRST_GAIN, LAST_GAIN = 4.0, 0.03  # initial gains of a high band's first and last convolution
TAPS = 127  # of the filter that separates a band from the audio


@dataclass(frozen=True)
class Batches:
    """Batches of segments that are cut from the left and right channels of random songs.

    `alone` is the share of songs of which only one of `parts` is used; `both` is the share of which
    both channels are used, not only the drums' channel.
    """

    segments: int
    seconds: float
    parts: tuple[str, ...]
    alone: float
    both: float = 1.0


@dataclass(frozen=True)
class Band:
    """A codec of the frequencies above `above` Hz, and its training.

    The first `unquantized` steps skip the quantizer: the output of an untrained encoder would
    collapse into one code.
    """

    filters: int
    dimension: int
    codebooks: int
    batches: Batches
    loss: Loss
    steps: int
    rate: float
    above: float = 0.0
    unquantized: int = 0


LOW = Band(
    filters=16,
    dimension=64,
    codebooks=4,
    batches=Batches(12, 1.0, ("bass", "chords", "lead"), alone=0.25),
    loss=Loss((2048, 1024, 512, 256), floor=3e-4, samples=1.0, amplitudes=1.0, logarithms=0.5),
    steps=3000,
    rate=1e-3,
)
HIGH = Band(
    filters=8,
    dimension=8,
    codebooks=1,
    batches=Batches(12, 0.5, ("drums",), alone=0.35, both=0.4),
    loss=Loss((1024, 512, 256, 128), floor=3e-5, samples=0.5, amplitudes=1.0, logarithms=1.0),
    steps=1500,
    rate=2e-3,
    above=5000.0,
    unquantized=400,
)
BANDS = {"low": LOW, "high": HIGH}

# The training of the joined decoder, with fixed codes.
DECODER_BATCHES = Batches(8, 0.75, synth.PARTS, alone=0.2)
DECODER_LOSS = replace(LOW.loss, floor=2e-5, logarithms=0.7, levels=0.03)
DECODER_RATE = 1.5e-4
CODEBOOKS = sum(band.codebooks for band in BANDS.values())
STEPS = {name: band.steps for name, band in BANDS.items()} | {"decoder": 1000}


def config(bands: Iterable[Band] = BANDS.values()) -> dict[str, Any]:
    """Returns audiocraft's configuration of a codec of these bands."""
    filters, dimension, codebooks = (
        sum(getattr(band, name) for band in bands) for name in ("filters", "dimension", "codebooks")
    )
    values = configs.codec_config()
    values["seanet"] |= {"n_filters": filters, "dimension": dimension, "lstm": 0}
    values["rvq"] |= {"n_q": codebooks, "bins": CARD, "kmeans_init": True, "kmeans_iters": 20}
    return values


def build(bands: Iterable[Band] = BANDS.values()) -> EncodecModel:
    """Returns the untrained codec, always the same."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")
        torch.manual_seed(SEED)
        return get_compression_model(OmegaConf.create(config(bands)))


def train(folder: Path, steps: Mapping[str, int] = STEPS, device: str = "cpu") -> EncodecModel:
    """Returns the trained codec; the states of its bands and decoder in `folder` are resumed."""
    parts = [train_band(folder / name, band, steps[name], device) for name, band in BANDS.items()]
    whole = join(parts, build())
    return train_decoder(folder / "decoder", whole, steps["decoder"], device)


def train_band(folder: Path, band: Band, steps: int, device: str) -> EncodecModel:
    """Returns the trained codec of one band, on the CPU."""
    model = build([band])
    if band.above:
        initialize_above(model, band.above)
    model.to(device)

    def reconstruct(wav: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the reconstructed band and the penalty of its latents."""
        if step >= band.unquantized:
            result = model(wav)
            return result.x, COMMITMENT * result.penalty.mean()
        latent = model.encoder(wav)
        return model.decoder(latent)[..., : wav.shape[-1]], 1e-3 * latent.square().mean()

    target = partial(above, hertz=band.above)
    adam = AdamW(model.parameters(), band.rate, (0.9, 0.98), weight_decay=0.01)
    run = Run(folder, model, steps, [adam])
    _train(run, reconstruct, target, band.batches, band.loss, device)
    return model.cpu().eval()


def train_decoder(folder: Path, model: EncodecModel, steps: int, device: str) -> EncodecModel:
    """Train only the decoder, with fixed codes, on all bands together and on rests."""
    model.to(device).requires_grad_(False).eval()
    model.decoder.requires_grad_(True)

    def reconstruct(wav: Tensor, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latent = model.quantizer.decode(model.encode(wav)[0])
        return model.decoder(latent)[..., : wav.shape[-1]], wav.new_zeros(())

    adam = AdamW(model.decoder.parameters(), DECODER_RATE, (0.8, 0.98), weight_decay=0.0)
    run = Run(folder, model, steps, [adam])
    _train(run, reconstruct, nn.Identity(), DECODER_BATCHES, DECODER_LOSS, device)
    return model.eval()


def _train(
    run: Run,
    reconstruct: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    target: Callable[[Tensor], Tensor],
    batches: Batches,
    loss: Loss,
    device: str,
) -> None:
    """Minimize the loss between the reconstruction and `target` of segments, plus the penalty."""
    held_out = segments(HELD_OUT, batches).to(device)
    for step in run:
        torch.manual_seed(step)
        run.model.train()
        wav = segments(step, batches).to(device)
        with precision(device):
            rebuilt, penalty = reconstruct(wav, step)
        distance = loss(target(wav), rebuilt.float())
        run.update(distance + penalty.float())
        if step % REPORT_EVERY == 0 or step + 1 == run.steps:
            run.model.eval()
            with torch.inference_mode():
                rebuilt, _ = reconstruct(held_out, step)
                wanted = target(held_out)
            run.note(
                step,
                loss=distance.item(),
                held_out=loss(wanted, rebuilt).item(),
                si_sdr=si_sdr(wanted, rebuilt).nanmean().item(),  # undefined for silence
            )


@torch.no_grad()
def initialize_above(model: EncodecModel, hertz: float) -> None:
    """Initialize the first filters as bandpass filters above `hertz`, and the last ones quietly.

    From random weights, the codec would learn only louder and lower sounds for a long time.
    """
    first, last = (part.conv.conv for part in (model.encoder.model[0], model.decoder.model[-1]))
    filters, _, taps = first.weight_v.shape
    highest = synth.SAMPLE_RATE / 2 - 3000
    centres = torch.linspace(hertz + 1500, highest, filters)[:, None]
    phases = torch.arange(filters)[:, None] * torch.pi / 2
    time = (torch.arange(taps) - taps // 2) / synth.SAMPLE_RATE
    window = torch.hann_window(taps + 2, periodic=False)[1:-1]
    waves = window * (2 * torch.pi * centres * time + phases).cos()
    waves -= window * waves.sum(1, keepdim=True) / window.sum()  # no response to a constant
    first.weight_v.copy_(FIRST_GAIN * waves[:, None])
    first.weight_g.copy_(first.weight_v.flatten(1).norm(dim=1)[:, None, None])
    first.bias.zero_()
    last.weight_g.mul_(LAST_GAIN)


def above(wav: Tensor, hertz: float) -> Tensor:
    """Returns the part of wav [B, 1, N] above `hertz`."""
    if not hertz:
        return wav
    taps = firwin(TAPS, hertz, pass_zero="highpass", fs=synth.SAMPLE_RATE)
    return F.conv1d(wav, torch.from_numpy(taps).to(wav)[None, None], padding=TAPS // 2)


def segments(seed: int, batches: Batches = LOW.batches) -> Tensor:
    """Returns batch number `seed`, [segments, 1, N]."""
    rng = np.random.default_rng([SEED, seed])
    length = round(batches.seconds * synth.SAMPLE_RATE)
    channels: list[np.ndarray] = []
    while len(channels) < batches.segments:
        drawn, start = song.draw(rng), int(rng.integers(500))
        if rng.random() < NEAR_REST:
            drawn, start = replace(drawn, turn="break"), _near_break(drawn, batches.seconds, rng)
        stems = synth.render(drawn, batches.seconds + 0.05, start)
        if rng.random() < batches.alone:
            stems = {"part": stems[batches.parts[int(rng.integers(len(batches.parts)))]]}
        # Users' recordings do not begin on a boundary of the codec's frames.
        shift = 0 if rng.random() < 0.7 else int(rng.integers(synth.FRAME))
        gain = np.exp(rng.normal(0, 0.3)) if rng.random() < 0.3 else 1.0
        wav = gain * synth.mix(stems)[:, shift:][:, :length]
        drums = int(drawn.lead_side > 0)
        channels += [*wav] if rng.random() < batches.both else [wav[drums]]
    return torch.from_numpy(np.stack(channels[: batches.segments]).astype(np.float32))[:, None]


def _near_break(drawn: song.Song, seconds: float, rng: np.random.Generator) -> int:
    """Returns a start frame such that a segment contains part of the break after four bars."""
    first = (song.BARS * song.BEATS - 1) * drawn.beat_frames
    return max(
        0, first + int(rng.integers(-round(seconds / 2 * song.FRAME_RATE), drawn.beat_frames // 2))
    )
