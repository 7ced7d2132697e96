"""Matrices as the products of the CPU read them: in panels of PANEL outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musicgen.decoder.kernels.intrinsics import PANEL
from musicgen.decoder.kernels.layout import DEPTH_BLOCK
from musicgen.decoder.kernels.products import is_float16
from musicgen.decoder.kernels.program import Kind, Operation
from musicgen.decoder.kernels.team import Team


@dataclass(frozen=True)
class Packed:
    """A matrix [N, D] in panels [N / PANEL, D, PANEL], the last one filled up with zeros.

    Weights of int8 are multiples of `scales` [N / PANEL, blocks, PANEL]: each block of DEPTH_BLOCK
    weights of an output has its own. Their panels are [N / PANEL, D / 2, PANEL, 2], with a zero
    after an odd depth.
    """

    panels: Tensor  # float16, float32 or int8
    width: int  # N
    depth: int  # D
    scales: Tensor | None = None  # float32

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return self.panels.itemsize

    def dense(self) -> Tensor:
        """The matrix [N, D] in float32."""
        panels = self.panels.float()
        if self.scales is not None:
            panels = panels.transpose(2, 3).flatten(1, 2)[:, : self.depth]
            panels = panels * self.scales.repeat_interleave(DEPTH_BLOCK, 1)[:, : self.depth]
        return panels.transpose(1, 2).reshape(-1, self.depth)[: self.width]


def pack(matrix: Tensor, team: Team) -> Packed:
    """A matrix [N, D] as float16 if that loses nothing, else as float32; packed by all threads."""
    dtype = torch.float16 if is_float16(matrix) else torch.float32
    width, depth = matrix.shape
    packed = Packed(_panels(width, (depth, PANEL), dtype), width, depth)
    _run(Kind.PACK, matrix.to("cpu", dtype), packed, team)
    return packed


def quantize(matrix: Tensor, team: Team) -> Packed:
    """A matrix [N, D] rounded to int8, with scales; by all threads."""
    dtype = torch.float16 if matrix.dtype == torch.float16 else torch.float32
    width, depth = matrix.shape
    panels = _panels(width, (-(-depth // 2), PANEL, 2), torch.int8)
    if depth % 2:
        panels[:, -1, :, 1] = 0
    scales = torch.zeros(len(panels), -(-depth // DEPTH_BLOCK), PANEL)
    packed = Packed(panels, width, depth, scales)
    _run(Kind.QUANTIZE, matrix.to("cpu", dtype), packed, team)
    return packed


def _panels(width: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Panels of this shape for `width` outputs; only the last is filled, with zeros, if it is not
    full."""
    panels = torch.empty(-(-width // PANEL), *shape, dtype=dtype)
    if width % PANEL:
        panels[-1].zero_()
    return panels


def _run(kind: Kind, matrix: Tensor, packed: Packed, team: Team) -> None:
    """Fill the panels."""
    matrix = matrix.contiguous()
    program = np.zeros(1, Operation)
    fields = {"kind": kind, "tasks": len(packed.panels), "chunk": 1, "size": matrix.itemsize}
    fields |= {"x": matrix.data_ptr(), "y": packed.panels.data_ptr()}
    fields |= {"depth": packed.depth, "width": packed.width}
    if packed.scales is not None:
        fields["b"] = packed.scales.data_ptr()
    for name, value in fields.items():
        program[name] = value
    team.run(program, 0)
