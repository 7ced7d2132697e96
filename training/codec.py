"""Trains EnCodec, audiocraft's classes, on synthesized music: mono, 32 kHz, 50 frames/s, K = 5.

In one loss the tones take all codes and hats are lost: they last for 20 ms and lie 30 dB below. So
each of BANDS is learned by a codec of its own, with a loss of its own. Side by side they are one
EnCodec; at last its decoder is trained on, with the codes as they are.
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
HELD_OUT = 10_000_000  # seeds from here on are never trained on
REPORT_EVERY = 50
NEAR_REST = 0.2  # share of the songs that are cut where they may rest
FIRST_GAIN, LAST_GAIN = 4.0, 0.03  # how loud a band above others begins to hear and to sound
TAPS = 127  # of the filter that takes a band out of the sound


@dataclass(frozen=True)
class Heard:
    """A batch: this many segments, cut of both sides of drawn songs.

    Of `alone` of the songs it is one of `parts` only; of all but `both` the drums' side only.
    """

    segments: int
    seconds: float
    parts: tuple[str, ...]
    alone: float
    both: float = 1.0


@dataclass(frozen=True)
class Band:
    """A codec of what lies above `above` Hz, and how it is trained.

    The first `unquantized` steps pass by the quantizer: all that an encoder says before it hears
    anything would fall into one code.
    """

    filters: int
    dimension: int
    codebooks: int
    heard: Heard
    loss: Loss
    steps: int
    rate: float
    above: float = 0.0
    unquantized: int = 0


LOW = Band(
    filters=16,
    dimension=64,
    codebooks=4,
    heard=Heard(12, 1.0, ("bass", "chords", "lead"), alone=0.25),
    loss=Loss((2048, 1024, 512, 256), floor=3e-4, samples=1.0, amplitudes=1.0, logarithms=0.5),
    steps=3000,
    rate=1e-3,
)
HIGH = Band(
    filters=8,
    dimension=8,
    codebooks=1,
    heard=Heard(12, 0.5, ("drums",), alone=0.35, both=0.4),
    loss=Loss((1024, 512, 256, 128), floor=3e-5, samples=0.5, amplitudes=1.0, logarithms=1.0),
    steps=1500,
    rate=2e-3,
    above=5000.0,
    unquantized=400,
)
BANDS = {"low": LOW, "high": HIGH}

# What the decoder of all bands is trained with, once the codes are what they are.
DECODER_HEARD = Heard(8, 0.75, synth.PARTS, alone=0.2)
DECODER_LOSS = replace(LOW.loss, floor=2e-5, logarithms=0.7, levels=0.03)
DECODER_RATE = 1.5e-4
CODEBOOKS = sum(band.codebooks for band in BANDS.values())
STEPS = {name: band.steps for name, band in BANDS.items()} | {"decoder": 1000}


def config(bands: Iterable[Band] = BANDS.values()) -> dict[str, Any]:
    """audiocraft's configuration of a codec of these bands."""
    filters, dimension, codebooks = (
        sum(getattr(band, name) for band in bands) for name in ("filters", "dimension", "codebooks")
    )
    values = configs.codec_config()
    values["seanet"] |= {"n_filters": filters, "dimension": dimension, "lstm": 0}
    values["rvq"] |= {"n_q": codebooks, "bins": CARD, "kmeans_init": True, "kmeans_iters": 20}
    return values


def build(bands: Iterable[Band] = BANDS.values()) -> EncodecModel:
    """The untrained codec, always the same."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")
        torch.manual_seed(SEED)
        return get_compression_model(OmegaConf.create(config(bands)))


def train(folder: Path, steps: Mapping[str, int] = STEPS, device: str = "cpu") -> EncodecModel:
    """Train, or go on with, the codec whose bands and decoder have their states in `folder`."""
    parts = [train_band(folder / name, band, steps[name], device) for name, band in BANDS.items()]
    whole = join(parts, build())
    return train_decoder(folder / "decoder", whole, steps["decoder"], device)


def train_band(folder: Path, band: Band, steps: int, device: str) -> EncodecModel:
    """The codec of one band, on the CPU."""
    model = build([band])
    if band.above:
        listen_above(model, band.above)
    model.to(device)

    def hear(wav: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The band rebuilt, and what its encoder's numbers cost."""
        if step >= band.unquantized:
            result = model(wav)
            return result.x, COMMITMENT * result.penalty.mean()
        latent = model.encoder(wav)
        return model.decoder(latent)[..., : wav.shape[-1]], 1e-3 * latent.square().mean()

    target = partial(above, hertz=band.above)
    adam = AdamW(model.parameters(), band.rate, (0.9, 0.98), weight_decay=0.01)
    run = Run(folder, model, steps, [adam])
    _train(run, hear, target, band.heard, band.loss, device)
    return model.cpu().eval()


def train_decoder(folder: Path, model: EncodecModel, steps: int, device: str) -> EncodecModel:
    """The decoder alone learns, from the codes as they are: of all bands together, and of rests."""
    model.to(device).requires_grad_(False).eval()
    model.decoder.requires_grad_(True)

    def hear(wav: Tensor, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latent = model.quantizer.decode(model.encode(wav)[0])
        return model.decoder(latent)[..., : wav.shape[-1]], wav.new_zeros(())

    adam = AdamW(model.decoder.parameters(), DECODER_RATE, (0.8, 0.98), weight_decay=0.0)
    run = Run(folder, model, steps, [adam])
    _train(run, hear, nn.Identity(), DECODER_HEARD, DECODER_LOSS, device)
    return model.eval()


def _train(
    run: Run,
    hear: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    target: Callable[[Tensor], Tensor],
    heard: Heard,
    loss: Loss,
    device: str,
) -> None:
    """Bring what `hear` makes of segments, at a cost, near to their `target`."""
    held_out = segments(HELD_OUT, heard).to(device)
    for step in run:
        torch.manual_seed(step)
        run.model.train()
        wav = segments(step, heard).to(device)
        with precision(device):
            rebuilt, cost = hear(wav, step)
        apart = loss(target(wav), rebuilt.float())
        run.update(apart + cost.float())
        if step % REPORT_EVERY == 0 or step + 1 == run.steps:
            run.model.eval()
            with torch.inference_mode():
                rebuilt, _ = hear(held_out, step)
                wanted = target(held_out)
            run.note(
                step,
                loss=apart.item(),
                held_out=loss(wanted, rebuilt).item(),
                si_sdr=si_sdr(wanted, rebuilt).nanmean().item(),  # silence has none
            )


@torch.no_grad()
def listen_above(model: EncodecModel, hertz: float) -> None:
    """Let the first filters begin as bands above `hertz`, and the last be quiet.

    From chance alone, louder and lower sounds are all that is heard for long.
    """
    first, last = (part.conv.conv for part in (model.encoder.model[0], model.decoder.model[-1]))
    filters, _, taps = first.weight_v.shape
    highest = synth.SAMPLE_RATE / 2 - 3000
    centres = torch.linspace(hertz + 1500, highest, filters)[:, None]
    phases = torch.arange(filters)[:, None] * torch.pi / 2
    time = (torch.arange(taps) - taps // 2) / synth.SAMPLE_RATE
    window = torch.hann_window(taps + 2, periodic=False)[1:-1]
    waves = window * (2 * torch.pi * centres * time + phases).cos()
    waves -= window * waves.sum(1, keepdim=True) / window.sum()  # nothing constant passes
    first.weight_v.copy_(FIRST_GAIN * waves[:, None])
    first.weight_g.copy_(first.weight_v.flatten(1).norm(dim=1)[:, None, None])
    first.bias.zero_()
    last.weight_g.mul_(LAST_GAIN)


def above(wav: Tensor, hertz: float) -> Tensor:
    """What of wav [B, 1, N] lies above `hertz`."""
    if not hertz:
        return wav
    taps = firwin(TAPS, hertz, pass_zero="highpass", fs=synth.SAMPLE_RATE)
    return F.conv1d(wav, torch.from_numpy(taps).to(wav)[None, None], padding=TAPS // 2)


def segments(seed: int, heard: Heard = LOW.heard) -> Tensor:
    """A batch [segments, 1, N]."""
    rng = np.random.default_rng([SEED, seed])
    length = round(heard.seconds * synth.SAMPLE_RATE)
    sides: list[np.ndarray] = []
    while len(sides) < heard.segments:
        drawn, start = song.draw(rng), int(rng.integers(500))
        if rng.random() < NEAR_REST:
            drawn, start = replace(drawn, turn="break"), _near_break(drawn, heard.seconds, rng)
        stems = synth.render(drawn, heard.seconds + 0.05, start)
        if rng.random() < heard.alone:
            stems = {"part": stems[heard.parts[int(rng.integers(len(heard.parts)))]]}
        # Recordings that people bring do not begin on our frames.
        shift = 0 if rng.random() < 0.7 else int(rng.integers(synth.FRAME))
        gain = np.exp(rng.normal(0, 0.3)) if rng.random() < 0.3 else 1.0
        wav = gain * synth.mix(stems)[:, shift:][:, :length]
        drums = int(drawn.lead_side > 0)
        sides += [*wav] if rng.random() < heard.both else [wav[drums]]
    return torch.from_numpy(np.stack(sides[: heard.segments]).astype(np.float32))[:, None]


def _near_break(drawn: song.Song, seconds: float, rng: np.random.Generator) -> int:
    """A frame from which on a part of the break at the end of four bars is heard."""
    first = (song.BARS * song.BEATS - 1) * drawn.beat_frames
    return max(
        0, first + int(rng.integers(-round(seconds / 2 * song.FRAME_RATE), drawn.beat_frames // 2))
    )
