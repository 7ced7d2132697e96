"""scripts/weights kernels: the command, and what is an error."""

import subprocess
import sys

import pytest

from musicgen.commands.server import ROOT


def weights(*arguments):
    """The finished process of `scripts/weights`, without its installation."""
    command = [sys.executable, "-m", "musicgen.commands.cli", "weights", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.triton
def test_the_kernels_of_a_checkpoint_are_compiled_without_a_gpu(checkpoints, tmp_path):
    done = weights("kernels", checkpoints["stereo-melody"], "--gpu", "sm_75", "--into", tmp_path)
    assert done.returncode == 0, done.stderr
    [line, size] = done.stdout.splitlines()
    entries = [path.name for path in tmp_path.iterdir()]
    assert line.startswith(f"sm_75: {len(entries)} kernels in ")
    assert size.startswith(f"{tmp_path}: ")
    names = {path.name for path in tmp_path.rglob("*.cubin")}
    # Matrix products of this architecture are cuBLAS's.
    assert names == {"_split_kernel.cubin", "_combine_kernel.cubin", "_sample_kernel.cubin"}


def test_a_folder_without_a_checkpoint_and_an_unknown_architecture_are_errors(tmp_path):
    done = weights("kernels", tmp_path, "--gpu", "sm_90")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {tmp_path} is not a checkpoint")
    done = weights("kernels", "--gpu", "sm_70")
    assert done.returncode == 2
    assert "invalid choice: 'sm_70'" in done.stderr
