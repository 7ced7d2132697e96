"""Helpers of the tests of Multi-Band Diffusion."""

import torch

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.rendering.codec import Codec
from musicgen.rendering.diffusion import MultiBandDiffusion
from training import configs

CPU = torch.device("cpu")
HOP = 640
FRAMES = 20


def load(folder):
    checkpoint = open_checkpoint(folder)
    return MultiBandDiffusion(checkpoint, Codec(checkpoint, CPU), CPU)


def draw(*shape):
    return torch.randint(configs.CARD, shape, generator=torch.Generator().manual_seed(5))


def read(path):
    return torch.load(path, weights_only=False)
