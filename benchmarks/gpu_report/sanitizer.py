"""Stage: NVIDIA's compute-sanitizer on uncaptured steps of a tiny model."""

import shutil
import subprocess
import sys

from benchmarks.gpu_report.stage import Setting

FOUND = 9  # compute-sanitizer's exit code if it finds an error
STEP = """
import torch
from benchmarks.gpu_report.running import make_clip
from benchmarks.work import Work, random_state_dict
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM
work = Work("tiny-stereo-melody", 1.0, 1, torch.device("cuda"))
state = random_state_dict(work.config)
lm = LM.from_audiocraft(work.config, state, device=work.device, dtype=work.half)
engine = Engine(lm, max_length=50, stride=25, slots=2, eager=True,
                shared_prefix=torch.zeros(work.melody_length, work.config.dim))
engine.generate([make_clip(work, seed, frames=4) for seed in range(2)])
"""


def run(setting: Setting) -> None:
    """Record whether the sanitizer finds an error."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or setting.tiny:
        setting.recorder.add("memcheck", outcome="absent: compute-sanitizer or the GPU is missing")
        return
    command = [tool, "--tool=memcheck", f"--error-exitcode={FOUND}", sys.executable, "-c", STEP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-20000:], done.stderr[-20000:])
    setting.recorder.add(
        "memcheck", ok=done.returncode == 0, code=done.returncode, tail=done.stdout[-1500:]
    )
