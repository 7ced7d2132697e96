"""Renderings of many requests at once hold no more memory than their budget, diffusion included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_checkpoints

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 8
# Memory of the process beyond the renderings: allocator, threads, and activations, which grow with
# the width of a network and are bounded by the windows of its input.
OTHER_BYTES = 150e6
# Requests for SECONDS of stereo, half of them with diffusion, with random codes. Prints the budget,
# and the largest memory beyond that of the idle process.
RENDER = """
import gc, json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from musicgen import MusicGen, Request
from musicgen.runtime.budget import Budget

torch.set_num_threads(1)
folder, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
model = MusicGen.load(folder, "cpu")
card, n_q = model.engine.lm.config.card, model.engine.lm.config.n_q

def codes(clips, timings):
    random = torch.Generator().manual_seed(clips[0].seed)
    return torch.randint(card, (1, n_q, clips[0].length), generator=random)

def request(number, duration):
    diffusion = number % 2 == 0
    return Request(prompt="", duration=duration, seed=number, multi_band_diffusion=diffusion)

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return 1024 * int(line.split()[1])

model._decode = codes
for number in range(2):  # loads what is loaded on first use
    model.generate(request(number, 1))
requests = [request(number, seconds / (1 + number // 2 * 1.1)) for number in range(count)]
needed = [model._rendering_bytes(request) for request in requests]
model.renderings = Budget(max(needed) + min(needed))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
idle = memory("VmRSS")
with ThreadPoolExecutor(count) as pool:
    # From short to long, so that the long ones do not simply come first.
    results = list(pool.map(model.generate, requests[::-1]))
wavs = sum(wav.nbytes for result in results for wav in result.wavs)
print(json.dumps({"held": memory("VmHWM") - idle, "budget": model.renderings.total,
                  "needed": sum(needed), "wavs": wavs}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("diffusing")
    tiny_checkpoints.write_checkpoint(made, "stereo-melody")
    tiny_checkpoints.write_diffusion(made)
    return made


@pytest.mark.parametrize("seconds", [40, pytest.param(300, marks=pytest.mark.full)])
def test_eight_renderings_at_once_stay_within_their_budget(folder, seconds):
    command = [sys.executable, "-W", "ignore", "-c", RENDER]
    done = subprocess.run(
        [*command, str(folder), str(REQUESTS), str(seconds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["held"] < found["budget"] + found["wavs"] + OTHER_BYTES
    assert found["needed"] > 1.5 * found["budget"]
