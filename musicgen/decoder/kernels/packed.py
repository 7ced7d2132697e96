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
    weights of an output has its own.
    """

    panels: Tensor  # float16, float32 or int8
    width: int  # N
    scales: Tensor | None = None  # float32

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
        panels = self.panels.float()
        if self.scales is not None:
            panels *= self.scales.repeat_interleave(DEPTH_BLOCK, 1)[:, : self.depth]
        return panels.transpose(1, 2).reshape(-1, self.depth)[: self.width]


def pack(matrix: Tensor, team: Team) -> Packed:
    """A matrix [N, D] as float16 if that loses nothing, else as float32; packed by all threads."""
    dtype = torch.float16 if is_float16(matrix) else torch.float32
    packed = _empty(matrix, dtype, None)
    _run(Kind.PACK, matrix.to("cpu", dtype), packed, team)
    return packed


def quantize(matrix: Tensor, team: Team) -> Packed:
    """A matrix [N, D] rounded to int8, with scales; by all threads."""
    dtype = torch.float16 if matrix.dtype == torch.float16 else torch.float32
    blocks = -(-matrix.shape[1] // DEPTH_BLOCK)
    scales = torch.zeros(-(-len(matrix) // PANEL), blocks, PANEL)
    packed = _empty(matrix, torch.int8, scales)
    _run(Kind.QUANTIZE, matrix.to("cpu", dtype), packed, team)
    return packed


def _empty(matrix: Tensor, dtype: torch.dtype, scales: Tensor | None) -> Packed:
    """Panels for a matrix, of which only those beyond its width are filled, with zeros."""
    width, depth = matrix.shape
    panels = torch.empty(-(-width // PANEL), depth, PANEL, dtype=dtype)
    if width % PANEL:
        panels[-1].zero_()
    return Packed(panels, width, scales)


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
