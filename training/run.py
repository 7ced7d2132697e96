"""A training run that can be resumed: its folder holds the state and a table of the losses."""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

STATE, LOSSES = "state.pt", "losses.csv"
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # the x86 and ARM capabilities for multiplying it


def precision(device: str) -> torch.autocast:
    """Returns autocast to bfloat16, enabled where the device multiplies that format quickly."""
    able = torch.cpu.get_capabilities()
    fast = device != "cpu" or any(able.get(name, False) for name in BFLOAT16)
    return torch.autocast(device, torch.bfloat16, enabled=fast)


class Run:
    """A training of `model` over `steps` steps; it resumes from the state in `folder`.

    The learning rates of `optimizers` are the peak of `schedule`.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        steps: int,
        optimizers: list[Optimizer],
        save_every: int = 250,
    ) -> None:
        self.folder, self.model, self.steps = folder, model, steps
        self.optimizers, self.save_every = optimizers, save_every
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.first = 0
        self.table: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            self._resume()

    def __iter__(self) -> Iterator[int]:
        """Yields the remaining steps; saves the state between them and at the end."""
        for step in range(self.first, self.steps):
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(step, self.steps)
            yield step
            if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                self.save(step + 1)

    def update(self, loss: torch.Tensor) -> None:
        """Take one step of the optimizers, with the gradient's norm clipped to 1."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()

    def note(self, step: int, **values: float) -> None:
        """Add and print a line of the table of losses."""
        self.table.append({"step": step, **{key: f"{value:.4f}" for key, value in values.items()}})
        print(" ".join(f"{key} {value}" for key, value in self.table[-1].items()), flush=True)

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "table": self.table,
        }
        torch.save(state, self.folder / "state.part")
        os.replace(self.folder / "state.part", self.folder / STATE)
        if self.table:
            with (self.folder / LOSSES).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(self.table[0]))
                writer.writeheader()
                writer.writerows(self.table)

    def _resume(self) -> None:
        state = torch.load(self.folder / STATE, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.first, self.table = state["step"], state["table"]
        print(f"resuming at step {self.first}", flush=True)


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Returns the share of the learning rate: linear warm-up, then a half cosine down to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
