"""Trains EnCodec, audiocraft's classes, on synthesized music: mono, 32 kHz, 50 frames/s, K = 4.

Without a discriminator: the loss compares waveforms and spectrograms at several resolutions. That
is enough for sounds that are the same samples each time.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from audiocraft.models.builders import get_compression_model
from audiocraft.models.encodec import EncodecModel
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import AdamW

from musicgen.checkpoints import tiny_config
from train_demo import song, synth
from train_demo.run import Run, precision

CARD = 512
STEPS, RATE, SEED = 3000, 1e-3, 1
SONGS, SECONDS = 6, 1.0  # of a batch: each song gives two segments, of left and right
COMMITMENT = 0.25
WINDOWS = (2048, 1024, 512, 256)
FLOOR = 3e-4  # of a spectrum's amplitudes, -70 dB
HELD_OUT = 10_000_000  # seeds from here on are never trained on


def config() -> dict[str, Any]:
    """audiocraft's configuration of the codec."""
    values = tiny_config.codec_config()
    values["seanet"] |= {"n_filters": 16, "dimension": 64, "lstm": 0}
    values["rvq"] |= {"bins": CARD, "kmeans_init": True, "kmeans_iters": 20}
    return values


def build() -> EncodecModel:
    """The untrained codec, always the same."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")
        torch.manual_seed(SEED)
        return get_compression_model(OmegaConf.create(config()))


def train(folder: Path, steps: int = STEPS, device: str = "cpu") -> EncodecModel:
    """Train, or go on with, the codec whose state is in `folder`."""
    model = build().to(device)
    adam = AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=0.01)
    run = Run(folder, model, steps, [adam])
    held_out = segments(HELD_OUT).to(device)
    for step in run:
        torch.manual_seed(step)
        model.train()
        wav = segments(step).to(device)
        with precision(device):
            result = model(wav)
        loss = distance(wav, result.x.float())
        run.update(loss + COMMITMENT * result.penalty.float().mean())
        if step % 50 == 0 or step + 1 == steps:
            model.eval()
            with torch.inference_mode():
                rebuilt = model(held_out).x
            run.note(
                step,
                loss=loss.item(),
                held_out=distance(held_out, rebuilt).item(),
                si_sdr=si_sdr(held_out, rebuilt).nanmean().item(),  # silence has none
            )
    return model.eval()


def segments(seed: int) -> Tensor:
    """A batch [2 * SONGS, 1, SECONDS] of both sides of drawn songs, some of one part alone."""
    rng = np.random.default_rng([SEED, seed])
    sides = []
    for _ in range(SONGS):
        stems = synth.render(song.draw(rng), SECONDS + 0.02, int(rng.integers(500)))
        if rng.random() < 0.25:
            stems = {"part": stems[synth.PARTS[int(rng.integers(1, len(synth.PARTS)))]]}
        # Recordings that people bring do not begin on our frames.
        shift = 0 if rng.random() < 0.7 else int(rng.integers(synth.FRAME))
        gain = np.exp(rng.normal(0, 0.3)) if rng.random() < 0.3 else 1.0
        wav = synth.mix(stems)[:, shift:][:, : round(SECONDS * synth.SAMPLE_RATE)]
        sides += [gain * wav[0], gain * wav[1]]
    return torch.from_numpy(np.stack(sides).astype(np.float32))[:, None]


def distance(wav: Tensor, other: Tensor) -> Tensor:
    """How far `other` [B, 1, N] is from `wav`: relative error of samples, spectra and levels."""
    total = (wav - other).abs().mean() / wav.abs().mean()
    for size in WINDOWS:
        a, b = spectrum(wav, size), spectrum(other, size)
        total = total + torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a) / len(WINDOWS)
        total = total + 0.5 * F.l1_loss((a + FLOOR).log(), (b + FLOOR).log()) / len(WINDOWS)
    return total


def spectrum(wav: Tensor, size: int) -> Tensor:
    """Amplitudes [B, size / 2 + 1, frames] of wav [B, 1, N]; a full-scale sine gives 0.5."""
    window = torch.hann_window(size, device=wav.device)
    return torch.stft(
        wav[:, 0], size, size // 4, window=window / window.sum(), return_complex=True
    ).abs()


def si_sdr(wav: Tensor, other: Tensor) -> Tensor:
    """Scale-invariant ratio of signal to distortion (Le Roux 2019) of each of [B, 1, N] in dB."""
    wav, other = (x - x.mean(-1, keepdim=True) for x in (wav, other))
    scale = (wav * other).sum(-1, keepdim=True) / wav.square().sum(-1, keepdim=True)
    error = other - scale * wav
    return 10 * ((scale * wav).square().sum((1, 2)) / error.square().sum((1, 2))).log10()
