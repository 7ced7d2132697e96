"""What it takes to render codes: memory and time."""

from typing import NamedTuple


class Demand(NamedTuple):
    """The demand of one way to render."""

    copies: int  # memory at the peak, in copies of the wav (float32)
    cost: int  # time on the device for a second of audio, compared with EnCodec. Rough


# Copies of EnCodec: 3.8 between 60 and 150 s of stereo, by the memory of the process
# (benchmarks/rendering_memory.py). Those of diffusion: 6.6 between 80 and 160 s of stereo, by its
# tensors. Both without the activations of a network, which are bounded by its windows.
ENCODEC = Demand(copies=4, cost=1)
DIFFUSION = Demand(copies=7, cost=100)  # 20 passes through each of four networks
