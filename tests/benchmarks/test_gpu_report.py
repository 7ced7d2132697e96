"""scripts/gpu-report on the CPU: every stage with a tiny model, ends of processes, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_plan.cards import DEVICES, GPUS
from benchmarks.gpu_report import engine_tests, runner, summary
from benchmarks.gpu_report.record import Recorder, Report
from benchmarks.gpu_report.stages import BASE_SECONDS, BY_NAME, STAGES

ONLY_TORCH = Path(__file__).parent / "only_torch"
KERNELS = BY_NAME["kernels"]


def command(folder, *options):
    return [sys.executable, "-m", "benchmarks.gpu_report", "--out", str(folder), *options]


def environment(**variables):
    return {**os.environ, "PYTHONPATH": str(runner.ROOT), "OMP_NUM_THREADS": "1", **variables}


def options(folder, *more):
    return runner.parse(["--out", str(folder), "--device", "cpu", "--seconds", "600", *more])


@pytest.mark.full
def test_every_stage_runs_on_the_cpu_with_nothing_but_torch_triton_and_pytest(tmp_path):
    path = os.pathsep.join([str(ONLY_TORCH), str(runner.ROOT)])
    blocked = subprocess.run(
        [sys.executable, "-c", "import omegaconf"], env=environment(PYTHONPATH=path), check=False
    )
    assert blocked.returncode != 0
    done = subprocess.run(
        command(tmp_path, "--device", "cpu", "--seconds", "3600"),
        env=environment(PYTHONPATH=path),
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    report, log = Report(tmp_path), (tmp_path / runner.LOG).read_text()
    assert report.ends() == dict.fromkeys(BY_NAME, "done"), log[-4000:]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {result["stage"] for result in report.results()} == set(BY_NAME)
    baselines = report.results("baseline") + report.results("baselines")
    assert {result["status"] for result in baselines} == {"absent"}
    for document in tmp_path.glob("*.json"):
        results = json.loads(document.read_text())["results"]
        assert [r["batch"] for r in results if r["system"] == "ours"] == [1, 2]


@pytest.mark.parametrize(
    ("stages", "killed_in", "done"),
    [
        (["facts", "kernels"], "kernels", ["facts"]),
        pytest.param(
            list(BY_NAME),
            "speed",
            ["facts", "kernels", "tests"],
            marks=pytest.mark.full,
        ),
    ],
    ids=["two stages", "every stage"],
)
def test_a_killed_report_is_resumed_without_losing_or_repeating_results(
    tmp_path, stages, killed_in, done
):
    arguments = command(tmp_path, "--device", "cpu", "--seconds", "3600", "--only", *stages)
    only_torch = environment(PYTHONPATH=os.pathsep.join([str(ONLY_TORCH), str(runner.ROOT)]))
    run = subprocess.Popen(
        arguments,
        env=only_torch,
        cwd=runner.ROOT,
        stdout=subprocess.DEVNULL,
    )
    report = Report(tmp_path)
    while len(report.results(killed_in)) < 2 and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = report.results()
    assert report.ends() == dict.fromkeys(done, "done")
    code = subprocess.run(
        [*arguments, "--resume"],
        env=only_torch,
        cwd=runner.ROOT,
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode
    assert code == 0
    lines = [(line["stage"], line["name"]) for line in report.lines() if "name" in line]
    assert len(lines) == len(set(lines)) > len(before)
    assert [result for result in report.results() if result in before] == before


def test_without_a_device_it_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        command(tmp_path),
        env=environment(CUDA_VISIBLE_DEVICES=""),
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == "scripts/gpu-report: PyTorch finds no usable cuda device\n"


def test_a_stage_over_its_limit_is_ended_with_its_children(tmp_path):
    report, stage = Report(tmp_path), replace(KERNELS, seconds=0)
    assert runner.run_stage(stage, options(tmp_path), report, time.monotonic() + 600) == "timeout"
    [end] = report.lines()
    assert (end["stage"], end["end"], end["code"]) == ("kernels", "timeout", None)


def test_a_stage_that_dies_is_recorded(tmp_path):
    report, stage = Report(tmp_path), replace(KERNELS, environment={"PYTHONHOME": "/nowhere"})
    end = time.monotonic() + 600
    assert runner.run_stage(stage, options(tmp_path), report, end) == "failed"
    assert report.ends() == {"kernels": "failed"}


def test_a_stage_without_time_is_skipped(tmp_path):
    report = Report(tmp_path)
    assert runner.run_stage(KERNELS, options(tmp_path), report, time.monotonic() + 9) == "skipped"
    assert report.ends() == {"kernels": "skipped"}


def test_after_a_failure_the_device_is_probed_and_the_report_ends_if_it_is_lost(
    tmp_path, monkeypatch, capsys
):
    started, answers = [], iter([True, False])
    monkeypatch.setattr(runner, "works", lambda device, end: next(answers))
    monkeypatch.setattr(
        runner, "run_stage", lambda stage, *arguments: started.append(stage.name) or "failed"
    )
    assert runner.run(options(tmp_path)) == 2
    assert started == ["facts"]
    assert Report(tmp_path).ends() == {"facts": "lost"}
    assert "facts: lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([{"end": "done"}], 0),
        ([{"name": "a", "ok": True}, {"end": "done"}], 0),
        ([{"name": "a", "ok": False}, {"end": "done"}], 1),
        ([{"name": "a", "ok": False}, {"name": "a", "ok": True}, {"end": "done"}], 0),
        ([{"end": "failed"}], 1),
        ([{"end": "timeout"}], 1),
        ([{"end": "skipped"}], 2),
        ([], 2),
    ],
)
def test_the_exit_code_says_whether_there_are_faults_or_gaps(tmp_path, lines, code):
    report = Report(tmp_path)
    for line in lines:
        report.add("facts", **line)
    assert summary.exit_code(report, ["facts"]) == code


def test_a_line_that_was_cut_is_left_out(tmp_path):
    report = Report(tmp_path)
    report.add("facts", name="a", ok=True)
    with report.path.open("a") as file:
        file.write('{"stage": "facts", "na')
    assert [line["name"] for line in report.lines()] == ["a"]


def test_a_speed_is_shown_with_its_operations_and_beside_the_prediction():
    result = {"stage": "speed", "name": "small, 1 clips", "note": "PyTorch operations"}
    result["ms_per_step"] = {"median": 2.0}
    assert summary.speed_line(result) == (
        "speed: small, 1 clips: 2.00 ms per step (PyTorch operations)"
    )
    result["predicted"] = {"ms_per_step": 1.0}
    assert summary.speed_line(result).endswith(", predicted 1.00 ms: -50%")


def test_tests_are_recorded_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as the runner does
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_none(): pytest.skip('here')\n"
        "def test_other(): pass\n"
    )
    report = Report(tmp_path)
    assert engine_tests.run_tests(Recorder(report, "tests"), folder, "not other") != 0
    found = {r["name"].partition("::")[2]: (r["outcome"], r["ok"]) for r in report.results()}
    assert found == {
        "test_good": ("passed", True),
        "test_bad": ("failed", False),
        "test_none": ("skipped", True),
    }


def test_the_stages_before_the_baselines_fit_a_command_of_ten_minutes():
    wanted = [stage for stage in STAGES if stage.name not in ("sanitizer", "baselines")]
    assert sum(stage.seconds for stage in wanted) <= 1.2 * BASE_SECONDS
    order = [stage.name for stage in STAGES]
    assert order.index("speed") < order.index("baseline") < order.index("baselines")


def test_every_predicted_card_has_the_name_that_its_driver_reports():
    assert sorted(DEVICES.values()) == sorted(GPUS)
