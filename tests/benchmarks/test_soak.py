"""scripts/soak runs against a real server and reports growth."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import musicgen
from benchmarks.soak import MINUTES_FOR_FILES, SAMPLES, Sample, ages, grown, soak

FLAT = Sample(0.0, 0, 0, 1000.0, 30, 100, 50, 3, 0.5, 0.5)


def series(minutes, **slopes):
    """Samples of a run in which the named measurements grow by a slope for each sample."""
    return [
        replace(
            FLAT,
            minute=(index + 1) * minutes / SAMPLES,
            **{name: getattr(FLAT, name) + index * slope for name, slope in slopes.items()},
        )
        for index in range(SAMPLES)
    ]


def test_flat_measurements_have_not_grown():
    assert grown(series(60)) == []


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("memory_mb", 5),
        ("threads", 0.2),
        ("descriptors", 0.5),
        ("files", 3),
        ("stale", 0.1),
        ("cpu", 0.02),
        ("latency", 0.05),
    ],
)
def test_a_growing_measurement_is_named(name, slope):
    [finding] = grown(series(60, **{name: slope}))
    assert finding.startswith(f"{name} grew from ")


def test_files_are_judged_only_in_runs_longer_than_they_are_kept():
    assert grown(series(MINUTES_FOR_FILES - 1, files=3)) == []


def test_files_that_are_deleted_during_the_count_are_skipped(tmp_path):
    for number in range(20):
        (tmp_path / f"folder-{number}").mkdir()
        (tmp_path / f"folder-{number}" / "file").touch()
    found = ages(tmp_path)
    next(found)
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    assert list(found) == []
    assert list(ages(tmp_path)) == []


def test_the_version_is_printed_without_torch():
    check = "import sys, benchmarks.soak as s; sys.argv = ['soak', '--version']\ntry: s.main()\n"
    check += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"musicgen {musicgen.__version__}\n")


def test_a_short_soak_finds_nothing_wrong(checkpoints, capsys, monkeypatch):
    monkeypatch.setenv("MUSICGEN_DEVICE", "cpu")
    findings = soak(checkpoints["text"], minutes=0.05, callers=3, seed=0)
    assert not [finding for finding in findings if "grew" not in finding]
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == list(Sample.__dataclass_fields__)
    assert len(rows) == SAMPLES
    assert int(rows[-1].split()[1]) > 3
