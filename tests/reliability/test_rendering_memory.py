"""What open renderings of many requests hold together stays within their budget.

Tensors are counted, not the process's memory: that has caches, and blocks that the allocator keeps.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_checkpoints

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("diffusing")
    tiny_checkpoints.write_checkpoint(made, "stereo-melody")
    tiny_checkpoints.write_diffusion(made)
    return made


def render(folder, *options):
    """The lines that renderings.py prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "renderings.py", folder, *options],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_eight_renderings_at_once_hold_no_more_than_their_budget(folder):
    bounded, unbounded = render(folder, "4", "--unbounded")
    assert 0 < bounded["held"] <= bounded["budget"] == unbounded["budget"]
    # Without a budget they hold more: the line above would notice.
    assert unbounded["held"] > unbounded["budget"]


@pytest.mark.full
def test_eight_long_renderings_at_once_hold_no_more_than_their_budget(folder):
    [found] = render(folder, "300")
    assert 0 < found["held"] <= found["budget"]
