"""Runs one stage of the report in this process: `python -m benchmarks.gpu_report.stage NAME`."""

import argparse
import ctypes
import importlib
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.gpu_report.record import Recorder, Report
from benchmarks.gpu_report.stages import BY_NAME
from benchmarks.machine import Bandwidth
from benchmarks.work import Work
from musicgen.decoder import kernels
from musicgen.decoder.kernels import Ops

PR_SET_PDEATHSIG = 1  # of prctl(2)
TINY = ("tiny-stereo-melody", "tiny")  # in place of the models in a dry run on the CPU


@dataclass(frozen=True)
class Setting:
    """What a stage measures, and where it records it."""

    device: torch.device
    models: tuple[str, ...]
    recorder: Recorder
    folder: Path

    @property
    def tiny(self) -> bool:
        """Whether this is a dry run on the CPU."""
        return self.device.type == "cpu"

    @property
    def ops(self) -> Ops | None:
        """None, the engine's choice; in a dry run PyTorch's operations, which need no numba."""
        return kernels.TORCH if self.tiny else None

    def bandwidth(self) -> Bandwidth:
        """Returns the measured bandwidth; in a dry run a constant."""
        return Bandwidth(1e10, "dry run") if self.tiny else machine.bandwidth(self.device)

    def work(self, model: str, batch: int) -> Work:
        """Returns `batch` clips of 30 s; in a dry run of 1 s."""
        return Work(model, 1.0 if self.tiny else 30.0, batch, self.device)

    def batches(self) -> tuple[int, ...]:
        """Returns numbers of clips, the most wanted first."""
        return (1, 2) if self.tiny else (1, 32, 8)


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=BY_NAME)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--model", nargs="+", required=True)
    options = parser.parse_args()
    end_with_parent()
    device = torch.device(options.device)
    models = TINY[: len(options.model)] if device.type == "cpu" else tuple(options.model)
    recorder = Recorder(Report(options.out), options.stage)
    module = importlib.import_module(f"benchmarks.gpu_report.{BY_NAME[options.stage].module}")
    module.run(Setting(device, models, recorder, options.out))


def end_with_parent() -> None:
    """Ask Linux to end this process if the runner is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
