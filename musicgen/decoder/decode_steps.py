"""The decode steps of an engine: one per batch size, each captured on its first use on CUDA."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from musicgen.decoder import kernels, pattern
from musicgen.decoder.graph import WARM_UPS, Graphed
from musicgen.decoder.kernels import Ops, cache_folder
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import ROWS_PER_CLIP
from musicgen.decoder.state import State, decode_step

BATCHES = (1, 2, 4, 8, 16, 32)  # numbers of clips for which a step can be captured
# Half of the time to compile a kernel is Triton's frontend, which holds the GIL; the other half is
# an assembler process. More threads would each keep a cuBLAS workspace, for nothing.
COMPILER_THREADS = 2

logger = logging.getLogger(__name__)


class DecodeSteps:
    """Called with the indices of slots, decodes one column of their clips."""

    def __init__(
        self, lm: LM, state: State, capture: bool | None, eager: bool, ops: Ops | None
    ) -> None:
        """The options are those of `Engine`."""
        self.lm = lm
        self.state = state
        self.capture = lm.device.type == "cuda" if capture is None else capture
        # MUSICGEN_GRAPHS=0 is the operator's way out if captured steps fail on a GPU.
        self.eager = eager or os.environ.get("MUSICGEN_GRAPHS") == "0"
        self.ops = ops or (kernels.cpu_ops(lm.team) if lm.team else None)
        self.chosen: dict[int, Ops] = {}  # by the number of clips
        self.captured: dict[int, tuple[Tensor, Graphed]] = {}  # by the number of clips

    def __call__(self, indices: Sequence[int]) -> None:
        """Run the step of the smallest batch that fits."""
        if not self.capture:
            ops = self._choose_ops(len(indices))
            decode_step(self.lm, ops, self.state, torch.tensor(indices, device=self.lm.device))
            return
        clips = next(size for size in self._sizes() if size >= len(indices))
        if clips not in self.captured:
            self.captured[clips] = self.capture_step(clips)
        slots, step = self.captured[clips]
        # Padding repeats the first slot, whose rows then compute and write the same values.
        padded = [*indices, *([indices[0]] * (clips - len(indices)))]
        slots.copy_(_pinned(padded, slots), True)
        step()

    def capture_all(self) -> None:
        """Capture the step of every batch size, if steps are captured.

        All kernels are compiled before, in parallel.
        """
        if not self.capture:
            return
        sizes = self._sizes()
        with ThreadPoolExecutor(COMPILER_THREADS) as pool:
            list(pool.map(self._choose_ops, [size for size in sizes if size not in self.chosen]))
        for clips in sizes:
            self([0] * clips)
        if requested := cache_folder.requested:
            compiled = sum(requested.values())
            found = len(requested) - compiled
            logger.info("Triton kernels: %d from the cache, %d compiled", found, compiled)

    @property
    def description(self) -> str:
        """The operations of the steps by number of clips, and whether graphs are used."""
        found: dict[str, list[int]] = {}
        for clips, ops in sorted(self.chosen.items()):
            found.setdefault(kernels.describe(ops), []).append(clips)
        texts = [
            name if len(found) == 1 else f"{name} ({', '.join(map(str, clips))} clips)"
            for name, clips in found.items()
        ]
        graphs = [not step.eager for _, step in self.captured.values()]
        if graphs:
            texts.append("CUDA graphs" if all(graphs) else "no CUDA graphs")
        return ", ".join(texts)

    def _choose_ops(self, clips: int) -> Ops:
        """The operations for a step of this many clips."""
        config = self.lm.config
        shape = kernels.Shape(config.dim, config.ffn_dim, config.head_dim, config.n_q * config.card)
        self.chosen[clips] = self.ops or kernels.choose(
            self.lm.device, self.lm.dtype, shape, ROWS_PER_CLIP * clips
        )
        return self.chosen[clips]

    def capture_step(self, clips: int) -> tuple[Tensor, Graphed]:
        """The slots tensor that the step of this many clips reads, and the captured step."""
        slots = torch.zeros(clips, dtype=torch.int64, device=self.lm.device)
        ops, state = self.chosen.get(clips) or self._choose_ops(clips), self.state
        step = Graphed(
            lambda: decode_step(self.lm, ops, state, slots),
            changed=(state.sequence, state.column, state.noise_step),
            eager=self.eager,
        )
        return slots, step

    def _sizes(self) -> list[int]:
        """The batch sizes for which steps are captured."""
        slots = len(self.state.column)
        return [size for size in BATCHES if size < slots] + [min(slots, BATCHES[-1])]


def slot_columns(lm: LM, max_length: int) -> int:
    """Columns of a slot: those of the longest window, and those that a capture's warm-up writes."""
    return pattern.num_columns(max_length, lm.config.delays) + WARM_UPS


def _pinned(values: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of `values` that can be copied to the device of `like` without waiting for it."""
    tensor = torch.tensor(values)
    return tensor.pin_memory() if like.is_cuda else tensor
