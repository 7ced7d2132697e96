"""The operations of a decode step on the CPU: recorded once, then run as one compiled call.

It is the counterpart of a captured CUDA graph. Each operation adds itself to a program instead
of computing. `replay` records the program on static tensors and runs it; later calls copy their
inputs into these tensors and run the same program again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from musicgen.decoder import sampling
from musicgen.decoder.kernels.intrinsics import PANEL
from musicgen.decoder.kernels.layout import DEPTH_BLOCK
from musicgen.decoder.kernels.packed import Packed
from musicgen.decoder.kernels.program import Kind, Operation, Then
from musicgen.decoder.kernels.team import Team

PRODUCTS = {
    torch.float32: Kind.FLOAT32,
    torch.float16: Kind.FLOAT16,
    torch.int8: Kind.INT8,
}
CHUNKS = 8  # pieces per thread into which an operation is cut, so that no thread waits long
LARGEST_CHUNK = 8  # panels

Inputs = tuple[Tensor | None, ...]


class Recording:
    """A program, and the tensors that it reads and writes."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.operations: list[dict[str, Any]] = []
        self.program: Any = None
        self.scratch = 0  # float32 numbers that a thread needs
        self.inputs: Inputs = ()
        self.result: Tensor | None = None
        self.function: Callable[..., Tensor] | None = None
        self.tensors: list[Tensor] = []  # whose memory must stay
        self.buffers: dict[tuple[str, torch.Size], Tensor] = {}

    def add(
        self, kind: Kind, tasks: int, scratch: int = 0, number: float = 0.0, **fields: Any
    ) -> None:
        """Add an operation; a field may be a tensor, of which the address is meant."""
        values: dict[str, Any] = {"kind": kind, "tasks": tasks, "number": number}
        for name, value in fields.items():
            if isinstance(value, Tensor):
                self.tensors.append(value)
                value = value.data_ptr()
            values[name] = value
        values["chunk"] = max(1, min(LARGEST_CHUNK, tasks // (CHUNKS * self.threads)))
        self.operations.append(values)
        self.scratch = max(self.scratch, scratch)

    def buffer(
        self, name: str, rows: int, width: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The tensor [rows, width] of this name, which every use overwrites."""
        key = name, torch.Size((rows, width))
        if key not in self.buffers:
            self.buffers[key] = torch.empty(key[1], dtype=dtype)
        return self.buffers[key]

    def build(self) -> None:
        self.program = np.zeros(len(self.operations), Operation)
        for operation, values in zip(self.program, self.operations, strict=True):
            for name, value in values.items():
                operation[name] = value


class CpuOps:
    """`Ops` on float32 rows and packed weights; no row depends on the others, bit for bit."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self._recordings: dict[Hashable, Recording] = {}
        self._recording = Recording(team.threads)

    def replay(
        self, function: Callable[..., Tensor], inputs: Inputs, key: Hashable | None = None
    ) -> Tensor:
        """`function(self, *inputs)`; with a key, the recording is kept for later calls.

        The result is overwritten by the next call with the same key.
        """
        recording = self._recordings.get(key) if key else None
        if recording is None:
            recording = self._record(function, inputs)
            if key:
                self._recordings[key] = recording
        else:
            for static, given in zip(recording.inputs, inputs, strict=True):
                if static is not None and given is not None:
                    static.copy_(given)
        self.team.run(recording.program, recording.scratch)
        assert recording.result is not None
        return recording.result

    def _record(self, function: Callable[..., Tensor], inputs: Inputs) -> Recording:
        recording = self._recording = Recording(self.team.threads)
        recording.inputs = tuple(None if x is None else x.clone().contiguous() for x in inputs)
        recording.tensors += [x for x in recording.inputs if x is not None]
        recording.result = function(self, *recording.inputs)
        recording.function = function  # whatever it refers to must stay as long as the recording
        recording.build()
        return recording

    def linear(
        self, x: Tensor, weight: Packed, then: Then = Then.STORE, y: Tensor | None = None
    ) -> Tensor:
        """The product [R, N] of x [R, D] with weight [N, D]."""
        rows, record = len(x), self._recording
        if y is None:
            y = record.buffer(f"product {then}", rows, weight.width)
        scales: dict[str, Any] = {}
        if weight.scales is not None:
            x, x_scales = self._rounded(x)
            scales = {"b": weight.scales, "x_scales": x_scales}
        record.add(
            PRODUCTS[weight.panels.dtype],
            tasks=len(weight.panels),
            scratch=rows * PANEL,
            then=then,
            x=x,
            y=y,
            a=weight.panels,
            rows=rows,
            depth=weight.depth,
            width=weight.width,
            **scales,
        )
        return y

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x [R, D] in int16, with a zero after an odd depth, and their scales [R, blocks]."""
        rows, depth = x.shape
        y = self._recording.buffer("rounded", rows, depth + depth % 2, torch.int16)
        scales = self._recording.buffer("scales", rows, -(-depth // DEPTH_BLOCK))
        self._recording.add(
            Kind.ROUND,
            tasks=rows,
            x=x,
            y=y,
            b=scales,
            rows=rows,
            depth=depth,
            width=y.shape[1],
        )
        return y, scales

    def _normed(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        rows, width = x.shape
        y = self._recording.buffer("norm", rows, width)
        self._recording.add(
            Kind.NORM,
            tasks=rows,
            x=x,
            y=y,
            a=norm.weight,
            b=norm.bias,
            rows=rows,
            width=width,
            number=norm.eps,
        )
        return y

    def norm_linear(
        self, x: Tensor, norm: nn.LayerNorm, weight: Packed, *, gelu: bool = False
    ) -> Tensor:
        """`Ops.norm_linear`."""
        return self.linear(self._normed(x, norm), weight, Then.GELU if gelu else Then.STORE)

    def norm_qkv(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        weight: Packed,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """`Ops.norm_qkv`; the queries are a view with the keys and values in between."""
        qkv = self.norm_linear(x, norm, weight)
        _, heads, capacity, head_dim = keys.shape
        width = heads * head_dim
        self._recording.add(
            Kind.APPEND,
            tasks=len(x),
            x=qkv,
            a=keys,
            b=values,
            size=keys.itemsize,
            rows=len(x),
            width=width,
            heads=heads,
            head_dim=head_dim,
            capacity=capacity,
            cache_rows=rows,
            positions=positions,
        )
        return qkv[:, :width]

    def linear_add(self, x: Tensor, weight: Packed, residual: Tensor) -> Tensor:
        """`Ops.linear_add`."""
        return self.linear(x, weight, Then.ADD, residual)

    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        lengths: Tensor,
        shared: Tensor | None = None,
    ) -> Tensor:
        """`Ops.attention`; shared positions are read in each row, which is as fast here."""
        count, (_, heads, capacity, head_dim) = len(q), keys.shape
        y = self._recording.buffer("attention", count, heads * head_dim)
        self._recording.add(
            Kind.ATTEND,
            tasks=count * heads,
            scratch=capacity,
            x=q,
            y=y,
            a=keys,
            b=values,
            size=keys.itemsize,
            rows=count,
            width=heads * head_dim,
            stride=q.stride(0),
            heads=heads,
            head_dim=head_dim,
            capacity=capacity,
            cache_rows=rows,
            positions=lengths,
            number=head_dim**-0.5,
        )
        return y

    sample = staticmethod(sampling.sample_each)
