"""Stage: the GPU, its driver, the versions, and whether Triton finds a compiler."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu_report.stage import Setting
from musicgen.decoder import cuda
from musicgen.decoder.kernels import compiler
from musicgen.runtime.devices import driver_version

QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"


def run(setting: Setting) -> None:
    """Record each group of facts; none of them stops the others."""
    setting.recorder.add("versions", **versions())
    setting.recorder.add("compiler", **compilers())
    setting.recorder.add("attention", **attention())
    query = output("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv")
    setting.recorder.add("nvidia-smi", text=query)
    if not setting.tiny:
        setting.recorder.add("device", **properties(setting.device))
    bandwidth = setting.bandwidth()
    setting.recorder.add(
        "bandwidth", gb_per_s=bandwidth.bytes_per_second / 1e9, measured_by=bandwidth.how
    )


def versions() -> dict[str, Any]:
    """Returns versions of Python's packages and of the driver."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": getattr(compiler.triton, "__version__", None),
        "driver": driver_version(),
        "commit": machine.commit(),
    }


def compilers() -> dict[str, Any]:
    """Returns what Triton needs to build launchers: a C compiler, Python.h, libcuda, a cache."""
    include = Path(sysconfig.get_path("include"))
    cache = os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
    return {
        "cc": shutil.which("gcc") or shutil.which("clang") or shutil.which("cc"),
        "cc_version": output("gcc", "--version").partition("\n")[0],
        "python_header": (include / "Python.h").exists(),
        "libcuda": "libcuda." in output("ldconfig", "-p"),
        "triton_cache": cache,
        "triton_cache_writable": os.access(_existing(Path(cache)), os.W_OK),
    }


def attention() -> dict[str, Any]:
    """Returns which backends PyTorch's attention may use, before and after the engine's choice."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    cuda.configure_backends()
    return {
        "cudnn_by_default": before,
        "cudnn_in_engine": torch.backends.cuda.cudnn_sdp_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
    }


def properties(device: torch.device) -> dict[str, Any]:
    """Returns the properties of the GPU that kernels depend on."""
    found = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "shared_memory": getattr(found, "shared_memory_per_block_optin", None),
        "l2_bytes": found.L2_cache_size,
        "free_bytes": free,
        "total_bytes": total,
    }


def output(*command: str) -> str:
    """Returns a command's output, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return repr(exc)
    return (done.stdout or done.stderr).strip()


def _existing(path: Path) -> Path:
    """Returns the nearest folder that exists."""
    return path if path.exists() else _existing(path.parent)
