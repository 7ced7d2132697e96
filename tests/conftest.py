"""What all tests share."""

import sys

import torch

import musicgen  # noqa: F401  (puts the stand-in for xformers in place)

# audiocraft's own decoder, the tests' oracle, calls one function of xformers.
sys.modules["xformers"].ops.unbind = torch.unbind
