"""The benchmark: its counts, the equivalence of its systems, and its reports."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import report, systems
from benchmarks.machine import Bandwidth, PeakMemory
from benchmarks.measure import Done, Stopwatch, choose_method, measure
from benchmarks.systems import SYSTEMS
from benchmarks.work import CONFIGS, Storage, Work, random_state_dict, step_bytes
from musicgen.decoder import kernels
from musicgen.decoder.lm import LM, Cache

CPU = torch.device("cpu")
FIGURES = {"real_time_factor", "gb_per_s", "roofline_percent", "first_code_ms", "clip_s"}


def tiny(model="tiny", batch=1, seconds=1.0):
    return Work(model, seconds, batch, CPU)


def distinct(state):
    """Returns larger weights, so that logits differ."""
    return {name: value * 8 if value.dim() > 1 else value for name, value in state.items()}


@pytest.fixture(scope="module")
def document():
    arguments = "--model tiny --seconds 1 --batch 1 2 --device cpu --repeats 2 --steps 3"
    options = command.parse(arguments.split())
    bandwidth = Bandwidth(20e9, "given by the test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.machine, "bandwidth", lambda device: bandwidth)
        return command.run(options)


@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [("small", 0.87), ("medium", 3.65), ("large", 6.28), ("stereo-melody-large", 5.68)],
)
def test_bytes_of_a_step(model, gigabytes):
    assert step_bytes(Work(model, 30, 1, CPU), Storage(2, 2)) / 1e9 == pytest.approx(
        gigabytes, rel=0.005
    )


def test_more_clips_read_the_weights_once():
    one, two, three = (step_bytes(Work("small", 30, n, CPU), Storage(2, 2)) for n in (1, 2, 3))
    assert three - two == two - one < 0.2 * one


def test_a_document_has_a_record_for_every_system_and_batch(document):
    found = [(record["batch"], record["system"]) for record in document["results"]]
    assert found == [(batch, name) for batch in (1, 2) for name in SYSTEMS]
    assert document["steps"] == 53
    assert json.loads(json.dumps(document)) == document


def test_the_figures_of_a_record_are_consistent(document):
    for record in document["results"]:
        if record["status"] != report.MEASURED:
            continue
        step = record["ms_per_step"]
        assert record["measured_steps"] == 3 * 2 * 3
        assert step["mean"] * record["measured_steps"] == pytest.approx(1e3 * record["measured_s"])
        assert 0 < step["min"] <= step["median"] <= step["max"]
        assert record["gb_per_s"] == pytest.approx(1e3 * record["gb_per_step"] / step["median"])
        assert record["roofline_percent"] == pytest.approx(100 * record["gb_per_s"] / 20)
        clip = (record["first_code_ms"] + 52 * step["median"]) / 1e3
        assert record["clip_s"] == pytest.approx(clip)
        assert record["real_time_factor"] == pytest.approx(record["batch"] / clip)
        assert record["peak_memory_gb"] is None or record["peak_memory_gb"] >= 0


def test_speedups_compare_with_this_engine_in_the_same_batch(document):
    for batch in (1, 2):
        results = {r["system"]: r for r in document["results"] if r["batch"] == batch}
        assert results["ours"]["ours_is_faster_by"] == 1
        ratio = results["audiocraft"]["ours_is_faster_by"]
        medians = [results[n]["ms_per_step"]["median"] for n in ("audiocraft", "ours")]
        assert ratio == pytest.approx(medians[0] / medians[1])
        fast, exact = results["ours fast"], results["ours"]
        assert fast["fast_is_faster_by"] == 1
        assert fast["ours_is_faster_by"] == pytest.approx(1 / exact["fast_is_faster_by"])


def test_the_fast_mode_reads_fewer_bytes_and_has_a_row_of_its_own(document, tmp_path):
    results = {r["system"]: r for r in document["results"] if r["batch"] == 1}
    assert results["ours fast"]["gb_per_step"] < 0.6 * results["ours"]["gb_per_step"]
    report.save(document, tmp_path)
    rows = report.markdown(tmp_path).splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [
        [model, batch] for batch in ("1", "2") for model in ("tiny", "tiny, fast")
    ]


def test_a_system_that_compiles_on_cuda_only_is_absent_on_the_cpu(document):
    record = next(r for r in document["results"] if r["system"] == "transformers static")
    assert record["status"] == report.ABSENT
    assert "CUDA only" in record["reason"]
    assert not FIGURES & set(record)
    assert "absent" in report.table(document)


@pytest.mark.parametrize(
    ("raised", "status"), [(ImportError("No module"), "absent"), (RuntimeError("broke"), "failed")]
)
def test_a_baseline_that_cannot_run_has_no_figures(monkeypatch, raised, status):
    def build(work, state):
        raise raised

    monkeypatch.setitem(SYSTEMS, "audiocraft", build)
    record = command.run_system("audiocraft", tiny(), {}, None, None)
    assert (record["status"], set(record)) == (status, {"system", "batch", "status", "reason"})
    assert str(raised) in record["reason"]


def test_an_error_of_this_engine_ends_the_benchmark(monkeypatch):
    def build(work, state):
        raise RuntimeError("broke")

    monkeypatch.setitem(SYSTEMS, "ours", build)
    with pytest.raises(RuntimeError, match="broke"):
        command.run_system("ours", tiny(), {}, None, None)


def test_a_batch_that_does_not_fit_is_recorded_as_failed(monkeypatch):
    def build(work, state):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setitem(SYSTEMS, "ours", build)
    record = command.run_system("ours", tiny(batch=32), {}, None, None)
    assert record["status"] == report.FAILED
    assert "too much" in record["reason"]


@pytest.mark.parametrize("model", ["tiny", "tiny-stereo-melody"])
@pytest.mark.parametrize(
    "build",
    [*list(SYSTEMS.values())[:4], systems.transformers_with_static_cache],
    ids=lambda build: build.__name__,
)
def test_systems_decode_with_and_without_an_audio_prompt(model, build):
    work = tiny(model, batch=2)
    system = build(work, random_state_dict(work.config))
    for prompt in (None, work.prompt(20)):
        watch = Stopwatch((1, 4), CPU)
        watch.start()
        with pytest.raises(Done):
            system.decode(prompt, watch.tick)
        assert watch.step == 4


@pytest.mark.parametrize("build", list(SYSTEMS.values())[:3], ids=lambda build: build.__name__)
@pytest.mark.parametrize("frames", [0, 20])
def test_a_clip_takes_as_many_steps_as_the_workload_counts(build, frames):
    work = tiny()
    ticks = []
    system = build(work, random_state_dict(work.config))
    system.decode(work.prompt(frames) if frames else None, lambda: ticks.append(1))
    assert len(ticks) == work.steps - frames


@pytest.mark.parametrize("model", ["tiny", "tiny-stereo-melody"])
def test_this_engine_and_audiocraft_decode_the_same_codes(monkeypatch, model):
    monkeypatch.setattr(systems, "TOP_K", 1)
    work = tiny(model, batch=2)
    state = distinct(random_state_dict(work.config))
    builds = (systems.ours, systems.audiocraft)
    mine, theirs = (build(work, state).decode(None, lambda: None) for build in builds)
    assert torch.equal(torch.stack(mine), theirs)
    assert len(mine[0].unique()) > 20


@pytest.mark.parametrize("model", ["tiny", "tiny-stereo-melody"])
def test_transformers_computes_the_same_logits(model):
    """Compares the logits of one step after the conditions."""
    work = tiny(model)
    config, state = work.config, distinct(random_state_dict(work.config))
    both = torch.stack([work.condition(), torch.zeros_like(work.condition())])
    prefix, cross = (None, both) if work.cross_length else (both, None)
    tokens = work.prompt(1).T  # [1, K]

    lm = LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)
    cache = Cache.empty(lm, 2, work.prefix_length + 1, work.cross_length)
    with torch.no_grad():
        for _ in lm.prefill(tokens[:0], prefix, cross, cache):
            pass
        filled = work.prefix_length
        x = (lm.embed(tokens) + lm.positions(filled + 1)[-1:]).repeat(2, 1)
        positions, rows = torch.tensor([filled] * 2), torch.arange(2)
        mine = lm.step(x, rows, positions, cache, kernels.cpu_ops(lm.team))

        model, _ = systems._transformers(work, state)
        theirs = model.decoder(tokens.T.repeat(2, 1), encoder_hidden_states=both).logits
    theirs = theirs[:, -1].view(2, config.n_q, config.card)
    assert mine.std() > 0.1
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_random_weights_are_reproducible_and_float16():
    config = CONFIGS["tiny"]
    first, second = random_state_dict(config), random_state_dict(config)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float16}


def test_timed_calls_are_centred_on_the_clip():
    work = Work("small", 30, 1, CPU)
    method = choose_method(work, repeats=5)
    middles = [c.prompt + (c.marks[0] + c.marks[-1]) / 2 for c in method.calls]
    assert sum(middles) / len(middles) == pytest.approx(work.steps / 2, abs=1)
    for call in method.calls:
        assert {b - a for a, b in pairwise(call.marks)} == {method.chunk}
        assert 0 <= call.prompt < work.frames
        assert call.prompt + call.marks[-1] <= work.steps


def test_a_short_clip_is_timed_whole():
    work = tiny()
    method = choose_method(work, repeats=2)
    assert method.full
    timing = measure(systems.ours(work, random_state_dict(work.config)), work, method)
    assert timing.measured_steps == 2 * (work.steps - 1)
    assert len(timing.steps) == 2


def test_peak_memory_counts_only_added_memory():
    memory = PeakMemory(CPU)
    if memory.before is None:
        pytest.skip("the high-water mark of resident memory cannot be reset here")
    assert memory.bytes() < 32 << 20
    torch.ones(128 << 20, dtype=torch.uint8)
    assert 96 << 20 < memory.bytes() < 192 << 20  # the peak stays after the tensor is freed


def test_the_table_is_made_of_saved_documents(document, tmp_path):
    path = report.save({**document, "device": "Some CPU (R), 2 threads"}, tmp_path)
    assert path.name == "tiny-some-cpu-r-2-threads.json"
    head, _, *rows = report.markdown(tmp_path).splitlines()
    assert len(rows) == 2
    assert {row.count("|") for row in (head, *rows)} == {head.count("|")}
    assert "against transformers static" in head
    assert rows[0].endswith("| absent |")


def test_without_saved_results_the_table_is_empty(tmp_path):
    assert len(report.markdown(tmp_path).splitlines()) == 2


@pytest.mark.parametrize("arguments", ["--seconds 31", "--seconds 0", "--model huge"])
def test_invalid_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        command.parse(arguments.split())
    assert "error" in capsys.readouterr().err


def test_the_last_line_of_the_output_is_json(monkeypatch, capsys, document):
    monkeypatch.setattr(command, "run", lambda options: document)
    monkeypatch.setattr(command, "sys", SimpleNamespace(argv=["bench"], stderr=command.sys.stderr))
    command.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
