"""The prediction of a decode step on GPUs that are not available."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import systems
from benchmarks.gpu_plan import fastest_step as fastest
from benchmarks.gpu_plan import prediction
from benchmarks.gpu_plan.cards import GPUS
from benchmarks.gpu_plan.cost import Cost
from benchmarks.gpu_plan.prediction import HALF, seconds
from benchmarks.work import Work, random_state_dict
from musicgen.commands.server import ROOT
from musicgen.decoder import kernels
from musicgen.decoder.gpus import SHARED_MEMORY

H200 = GPUS["h200"]


@pytest.fixture(scope="module")
def run():
    """Returns the lines that `scripts/bench --plan` prints, and its JSON."""
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


def test_every_line_is_marked_as_predicted(run):
    lines, records = run
    assert all(line.startswith("predicted") for line in lines)
    assert all(record["predicted"] for record in records)
    assert [(r["card"], r["batch"]) for r in records] == [
        ("H200 SXM", 1), ("H200 SXM", 32), ("T4", 1), ("T4", 32)
    ]  # fmt: skip


def test_the_parts_add_up_to_the_step(run):
    for record in run[1]:
        assert sum(part["seconds"] for part in record["parts"]) * 1e3 == pytest.approx(
            record["ms_per_step"]
        )
        assert sum(part["share"] for part in record["parts"]) == pytest.approx(1)
        assert 0 < record["roofline_percent"] < 100
        audio_ms = 30_000 * record["batch"] / 1503  # of a step
        assert record["real_time_factor"] == pytest.approx(audio_ms / record["ms_per_step"])


def test_every_layer_has_its_launches(run):
    h200 = {part["label"]: part for part in run[1][0]["parts"]}
    products = [part for label, part in h200.items() if label.startswith("product")]
    # Four in each of the 48 layers, plus the heads.
    assert sum(part["launches"] for part in products) == 4 * 48 + 1
    assert h200["attention"]["launches"] == 48


def test_a_launch_takes_at_least_its_start_and_its_reads():
    large = Cost("", programs=1320, memory=1e6)
    assert seconds(large, H200) > H200.launch + 1320e6 / H200.reachable
    assert seconds(large, H200) == pytest.approx(1320e6 / H200.reachable, rel=0.01)
    assert seconds(Cost("", programs=1), H200) == H200.launch + 2 * H200.cache_latency


def test_overlapping_launches_wait_less():
    plain = Cost("", programs=132, memory=1e5)
    overlapping = replace(plain, dependent=True)
    fetching = replace(overlapping, prefetches=True)
    saved = H200.launch - H200.dependent_launch
    assert seconds(plain, H200) - seconds(overlapping, H200) == pytest.approx(saved)
    assert seconds(overlapping, H200) - seconds(fetching, H200) == pytest.approx(
        H200.memory_latency
    )


def test_too_few_programs_cannot_use_the_bandwidth():
    halves = [Cost("", programs=n, memory=132e7 / n) for n in (132, 66)]
    whole, half = (seconds(one, H200) for one in halves)
    assert half == pytest.approx(132e7 / 66 / H200.processor_bytes, rel=0.01)
    assert half > 1.1 * whole


def test_programs_with_few_bytes_in_flight_are_bound_by_latency():
    steady, waiting = (
        Cost("", programs=132, memory=1e6, in_flight=in_flight) for in_flight in (1e5, 1e3)
    )
    begin = H200.launch + 2 * H200.cache_latency + H200.memory_latency
    assert seconds(waiting, H200) == pytest.approx(begin + 1e3 * H200.memory_latency)
    assert seconds(steady, H200) < seconds(waiting, H200) / 10


def test_shared_memory_limits_the_programs_that_run_at_once():
    free = Cost("", programs=264, cached=1e6, memory=1.0, in_flight=1e3)
    alone = replace(free, shared_memory=200 * 1024)
    assert seconds(alone, H200) > 1.9 * seconds(free, H200)


def test_the_recorder_knows_the_shared_memory_of_every_card():
    assert {card.capability for card in GPUS.values()} <= set(SHARED_MEMORY)
    for card in GPUS.values():
        assert card.shared_memory >= SHARED_MEMORY[card.capability]


def test_the_cpus_prediction_is_printed_beside_the_measurement():
    part = prediction.Part("product", 1, 1, 0.050)
    one = prediction.Prediction(H200, Work("small", 30.0, 2, torch.device("cpu")), HALF, [part])
    assert (
        "predicted for this CPU 50.0 ms per step, fastest measured 40.0 ms: +25%"
        in prediction.compare_on_cpu(one, 0.040)
    )


def count_operations(work):
    """Returns how many operations one decode step of the engine calls."""
    calls, cpu_ops = [], kernels.cpu_ops

    def counting(team):
        ops = cpu_ops(team)

        def counted(run):
            return lambda *args, **kwargs: (calls.append(1), run(*args, **kwargs))[1]

        return SimpleNamespace(replay=counted(ops.replay), sample=counted(ops.sample))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cpu_ops", counting)
        system = systems.ours(work, random_state_dict(work.config))
        after_step = []
        system.decode(None, lambda: after_step.append(len(calls)))
    return after_step[-1] - after_step[-2]


def test_the_fastest_step_counts_every_operation_of_an_engine_step_once(monkeypatch):
    """With a clock that ticks at every reading, a step of n operations takes 2n + 1 ticks."""
    work = Work("tiny", 1.0, 1, torch.device("cpu"))
    count = count_operations(work)
    ticks = itertools.count()
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: float(next(ticks)))
    assert fastest.fastest_step(work, steps=2) == 2 * count + 1


def test_the_fastest_step_takes_the_shortest_time_of_each_operation(monkeypatch):
    """The first step runs on a clock that is ten times as slow as that of the second."""
    work = Work("tiny", 1.0, 1, torch.device("cpu"))
    count = count_operations(work)
    slow_readings = 2 * count + 2
    ticks = itertools.chain(range(0, 10 * slow_readings, 10), itertools.count(10**6))
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: float(next(ticks)))
    assert fastest.fastest_step(work, steps=2) == 2 * count + 1
