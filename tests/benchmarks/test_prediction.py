"""The plan for GPUs that are not at hand: what it counts, and that it follows from that."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_plan import prediction, recorder
from benchmarks.gpu_plan.cards import GPUS
from benchmarks.gpu_plan.least import least_step
from benchmarks.gpu_plan.prediction import HALF, seconds
from benchmarks.gpu_plan.traffic import Traffic
from benchmarks.work import Work
from musicgen.commands.server import ROOT

H200 = GPUS["h200"]


@pytest.fixture(scope="module")
def run():
    """What `scripts/bench --plan` prints, and its JSON."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks", "--model", "stereo-melody-large"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    said = subprocess.run(
        [*command, "--plan", "h200", "t4", "--batch", "1", "32"],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return said[:-1], json.loads(said[-1])


def test_every_line_says_that_it_is_predicted(run):
    lines, records = run
    assert all(line.startswith("predicted") for line in lines)
    assert all(record["predicted"] for record in records)
    assert [(r["card"], r["batch"]) for r in records] == [
        ("H200 SXM", 1), ("H200 SXM", 32), ("T4", 1), ("T4", 32)
    ]  # fmt: skip


def test_parts_make_the_step(run):
    for record in run[1]:
        assert sum(part["seconds"] for part in record["parts"]) * 1e3 == pytest.approx(
            record["ms_per_step"]
        )
        assert sum(part["share"] for part in record["parts"]) == pytest.approx(1)
        assert 0 < record["roofline_percent"] < 100
        audio_ms = 30_000 * record["batch"] / 1503  # of a step
        assert record["real_time_factor"] == pytest.approx(audio_ms / record["ms_per_step"])


def test_launches_are_counted_by_layers(run):
    h200 = {part["label"]: part for part in run[1][0]["parts"]}
    products = [part for label, part in h200.items() if label.startswith("product")]
    # Four in each of the 48 layers, and the heads.
    assert sum(part["launches"] for part in products) == 4 * 48 + 1
    assert h200["attention"]["launches"] == 48


def test_a_launch_takes_at_least_what_begins_it_and_what_it_reads():
    large = Traffic("", programs=1320, memory=1e6)
    assert seconds(large, H200) > H200.launch + 1320e6 / H200.reachable
    assert seconds(large, H200) == pytest.approx(1320e6 / H200.reachable, rel=0.01)
    assert seconds(Traffic("", programs=1), H200) == H200.launch + 2 * H200.cache_latency


def test_launches_that_overlap_wait_less():
    plain = Traffic("", programs=132, memory=1e5)
    overlapping = replace(plain, dependent=True)
    fetching = replace(overlapping, fetches=True)
    saved = H200.launch - H200.dependent_launch
    assert seconds(plain, H200) - seconds(overlapping, H200) == pytest.approx(saved)
    assert seconds(overlapping, H200) - seconds(fetching, H200) == pytest.approx(
        H200.memory_latency
    )


def test_too_few_programs_cannot_use_the_bandwidth():
    halves = [Traffic("", programs=n, memory=132e7 / n) for n in (132, 66)]
    whole, half = (seconds(one, H200) for one in halves)
    assert half == pytest.approx(132e7 / 66 / H200.processor_bytes, rel=0.01)
    assert half > 1.1 * whole


def test_programs_that_read_little_at_a_time_wait_for_it():
    steady, waiting = (
        Traffic("", programs=132, memory=1e6, flight=flight) for flight in (1e5, 1e3)
    )
    begin = H200.launch + 2 * H200.cache_latency + H200.memory_latency
    assert seconds(waiting, H200) == pytest.approx(begin + 1e3 * H200.memory_latency)
    assert seconds(steady, H200) < seconds(waiting, H200) / 10


def test_shared_memory_decides_how_many_run_at_once():
    free = Traffic("", programs=264, cached=1e6, memory=1.0, flight=1e3)
    alone = replace(free, shared=200 * 1024)
    assert seconds(alone, H200) > 1.9 * seconds(free, H200)


def test_other_plans_need_no_gpu_either():
    assert {card.capability for card in GPUS.values()} <= set(recorder.SHARED_MEMORY)
    for card in GPUS.values():
        assert card.shared_memory >= recorder.SHARED_MEMORY[card.capability]


def test_what_was_measured_stands_beside_what_was_predicted():
    part = prediction.Part("product", 1, 1, 0.050)
    one = prediction.Prediction(H200, Work("small", 30.0, 2, torch.device("cpu")), HALF, [part])
    assert (
        "predicted for this CPU 50.0 ms a step, measured 40.0 ms at least: +25%"
        in prediction.beside(one, 0.040)
    )


def test_the_least_step_is_a_step_of_this_engine():
    assert least_step(Work("tiny", 1.0, 2, torch.device("cpu")), steps=2) > 0
