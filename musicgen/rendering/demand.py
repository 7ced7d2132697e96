"""What it takes to render codes: memory and time."""

from typing import NamedTuple


class Demand(NamedTuple):
    """The demand of one way to render."""

    copies: int  # memory at the peak, in copies of the wav (float32)
    cost: int  # time on the device for a second of audio, compared with EnCodec. Rough


ENCODEC = Demand(copies=6, cost=1)
DIFFUSION = Demand(copies=17, cost=100)  # 20 passes through each of four networks
