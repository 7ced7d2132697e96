"""Matrices as the products of the CPU read them: in panels of PANEL outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musicgen.decoder.kernels.intrinsics import PANEL
from musicgen.decoder.kernels.products import is_float16
from musicgen.decoder.kernels.program import Kind, Operation
from musicgen.decoder.kernels.team import Team


@dataclass(frozen=True)
class Packed:
    """A matrix [N, D] in panels [N / PANEL, D, PANEL], the last one filled up with zeros."""

    panels: Tensor  # float16 or float32
    width: int  # N

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return self.panels.itemsize

    @property
    def depth(self) -> int:
        """D."""
        return self.panels.shape[1]

    def dense(self) -> Tensor:
        """The matrix [N, D] in float32."""
        return self.panels.transpose(1, 2).reshape(-1, self.depth)[: self.width].float()


def pack(matrix: Tensor, team: Team) -> Packed:
    """A matrix [N, D] as float16 if that loses nothing, else as float32; packed by all threads."""
    dtype = torch.float16 if is_float16(matrix) else torch.float32
    matrix = matrix.to("cpu", dtype).contiguous()
    width, depth = matrix.shape
    panels = torch.empty(-(-width // PANEL), depth, PANEL, dtype=dtype)
    if width % PANEL:
        panels[-1].zero_()
    program = np.zeros(1, Operation)
    fields = {"kind": Kind.PACK, "tasks": len(panels), "chunk": 1, "size": matrix.itemsize}
    fields |= {"x": matrix.data_ptr(), "y": panels.data_ptr(), "depth": depth, "width": width}
    for name, value in fields.items():
        program[name] = value
    team.run(program, 0)
    return Packed(panels, width)
