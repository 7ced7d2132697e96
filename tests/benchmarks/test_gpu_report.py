"""scripts/gpu-report without a GPU: that it says so, and how it joins what it is given."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_report, report
from benchmarks.gpu_plan.cards import DEVICES, GPUS
from benchmarks.work import Work
from musicgen.commands.server import ROOT


@pytest.fixture(scope="module")
def document():
    """Measured on this CPU beside the plan for a GPU: of no use but to join them."""
    pytest.importorskip("triton")
    few = ["--seconds", "1", "--repeats", "1", "--steps", "3", "--only", "ours", "audiocraft"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        return gpu_report.measured("tiny", [1, 2], "cpu", "h200", *few)


def test_without_a_gpu_it_says_so_in_one_line():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_report"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == "scripts/gpu-report: PyTorch sees no CUDA device here\n"


def test_measured_and_predicted_stay_apart_in_one_document(document):
    assert [(r["system"], r["batch"]) for r in document["results"]] == [
        ("ours", 1), ("audiocraft", 1), ("ours", 2), ("audiocraft", 2)
    ]  # fmt: skip
    assert [(p["card"], p["batch"]) for p in document["predicted"]] == [
        ("H200 SXM", 1), ("H200 SXM", 2)
    ]  # fmt: skip
    assert all(plan["predicted"] for plan in document["predicted"])
    assert not any("predicted" in record for record in document["results"])


def test_each_batch_is_compared_with_its_own_plan(document):
    lines = gpu_report.beside(document).splitlines()
    mine = [r for r in document["results"] if r["system"] == "ours"]
    assert len(lines) == len(mine) == 2
    for line, plan, result in zip(lines, document["predicted"], mine, strict=True):
        predicted, step = plan["ms_per_step"], result["ms_per_step"]["median"]
        assert f"{predicted:.2f} ms a step (tiny, {result['batch']} clips)" in line
        assert line.endswith(f"measured {step:.2f} ms: {predicted / step - 1:+.0%}")


def test_a_batch_without_figures_is_not_compared(document):
    work = Work("tiny", 1.0, 1, torch.device("cpu"))
    failed = report.missing("ours", work, report.FAILED, "no memory")
    results = [failed, *document["results"][1:]]
    first, second = gpu_report.beside({**document, "results": results}).splitlines()
    assert first.endswith("not measured: no memory")
    assert ", measured" in second


def test_a_card_that_is_not_known_has_no_plan(document):
    said = gpu_report.beside({**document, "device": "Some GPU", "predicted": []})
    assert said.startswith("predicted: nothing")
    assert "Some GPU" in said


def test_the_readmes_table_is_of_what_was_measured(document, tmp_path):
    path = report.save(document, tmp_path)
    assert json.loads(path.read_text()) == document
    before = report.markdown(tmp_path)
    report.save({**document, "predicted": []}, tmp_path)
    assert report.markdown(tmp_path) == before
    assert len(before.splitlines()) == 4


def test_every_plan_is_for_a_card_that_names_itself():
    assert sorted(DEVICES.values()) == sorted(GPUS)


def test_tests_are_counted(tmp_path, capfd):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_none(): pytest.skip('here')\n"
    )
    assert gpu_report.count_tests(str(tmp_path)) == {"passed": 1, "failed": 1, "skipped": 1}
    assert "1 failed" in capfd.readouterr().out


def test_tests_that_kill_their_process_have_failed(tmp_path):
    (tmp_path / "test_some.py").write_text("import os\ndef test_dies(): os._exit(3)\n")
    assert gpu_report.count_tests(str(tmp_path)) == {"passed": 0, "failed": 1, "skipped": 0}
