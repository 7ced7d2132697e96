"""Which device is used, and the errors that say why one cannot be."""

import pytest
import torch

from musicgen.errors import MusicGenError
from musicgen.runtime import devices
from musicgen.runtime.devices import resolve_device, resolve_precision

VERSION = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """An NVIDIA driver that is too old for this PyTorch."""
    path = tmp_path / "version"
    path.write_text(VERSION)
    monkeypatch.setattr(devices, "DRIVER_VERSION", path)
    monkeypatch.setattr(devices, "DRIVER_FILES", (path,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("MUSICGEN_DEVICE", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("device", [None, "auto", "cuda"])
def test_a_gpu_that_pytorch_cannot_use_is_an_error(device):
    with pytest.raises(MusicGenError, match=r"driver 550.54.15, PyTorch built for CUDA 13.0"):
        resolve_device(device)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_no_error(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert resolve_device() == torch.device("cpu")


@pytest.mark.usefixtures("driver")
def test_a_pytorch_built_for_the_cpu_serves_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert resolve_device() == torch.device("cpu")


@pytest.mark.parametrize("index", [0, 1])
def test_an_indexed_gpu_is_refused_with_the_variable_to_set(monkeypatch, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MusicGenError, match=f"CUDA_VISIBLE_DEVICES={index}"):
        resolve_device(f"cuda:{index}")


@pytest.mark.parametrize("name", ["meta", "cpu:0", "toaster"])
def test_other_devices_are_refused(name):
    with pytest.raises(MusicGenError, match="Set auto, cpu or cuda"):
        resolve_device(name)


@pytest.mark.usefixtures("driver")
def test_a_gpu_is_described_with_its_versions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    text = devices.describe_device(torch.device("cuda"))
    assert text == (
        "NVIDIA H100 80GB HBM3 (compute capability 9.0), driver 550.54.15, "
        f"torch {torch.__version__}, CUDA 13.0"
    )


def test_the_precision_is_the_argument_or_the_variable_or_exact(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv("MUSICGEN_PRECISION", raising=False)
    assert resolve_precision(None, cpu) == "exact"
    monkeypatch.setenv("MUSICGEN_PRECISION", "fast")
    assert resolve_precision(None, cpu) == "fast"
    assert resolve_precision("exact", cpu) == "exact"


@pytest.mark.parametrize("wrong", ["int8", "Fast", "fp16"])
def test_an_unknown_precision_is_refused_with_the_choices(monkeypatch, wrong):
    monkeypatch.setenv("MUSICGEN_PRECISION", wrong)
    with pytest.raises(MusicGenError, match=f"MUSICGEN_PRECISION='{wrong}'.* Set exact or fast"):
        resolve_precision(None, torch.device("cpu"))


def test_the_fast_mode_is_refused_on_a_gpu():
    with pytest.raises(MusicGenError, match=r"for the CPU only.*MUSICGEN_DEVICE=cpu"):
        resolve_precision("fast", torch.device("cuda"))
