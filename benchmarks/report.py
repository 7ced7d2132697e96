"""Results of a benchmark: one record per system and batch, as table, JSON and Markdown."""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.machine import Bandwidth
from benchmarks.measure import Method, Timing
from benchmarks.systems import System
from benchmarks.work import Work, step_bytes

FOLDER = Path(__file__).parent / "results"
LIBRARIES = ("torch", "triton", "audiocraft", "transformers")
OURS, OURS_FAST = "ours", "ours fast"
MODES = {OURS: "ours_is_faster_by", OURS_FAST: "fast_is_faster_by"}  # of this engine
MEASURED, ABSENT, FAILED = "measured", "absent", "failed"

Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Statistics over the repeats."""

    median: float
    min: float
    max: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values), fmean(values))


def measured(
    name: str, work: Work, system: System, timing: Timing, bandwidth: Bandwidth, peak: int | None
) -> Record:
    """Returns the figures of one system.

    clip_s            first code + (steps - 1) * median ms/step
    real_time_factor  seconds of audio, of all clips together, per second of decoding
    gb_per_s          `step_bytes` at this system's storage types, per second
    roofline_percent  gb_per_s relative to the bandwidth that this run measured
    """
    step = Spread.of([1e3 * seconds for seconds in timing.steps])
    clip = timing.first_code + (work.steps - 1) * step.median / 1e3
    needed = step_bytes(work, system.storage)
    reached = needed / (step.median / 1e3)
    return {
        "system": name,
        "batch": work.batch,
        "status": MEASURED,
        "ms_per_step": asdict(step),
        "measured_steps": timing.measured_steps,
        "measured_s": timing.measured,
        "clip_s": clip,
        "real_time_factor": work.batch * work.seconds / clip,
        "gb_per_step": needed / 1e9,
        "bytes_per_weight": system.storage.weight,
        "bytes_per_cached_number": system.storage.cache,
        "gb_per_s": reached / 1e9,
        "roofline_percent": 100 * reached / bandwidth.bytes_per_second,
        "first_code_ms": 1e3 * timing.first_code,
        "warm_up_s": timing.warm_up,
        "peak_memory_gb": None if peak is None else peak / 1e9,
        "note": system.note(),
    }


def missing(name: str, work: Work, status: str, reason: str) -> Record:
    """Returns the record of a system without figures: ABSENT on this machine, or FAILED."""
    return {"system": name, "batch": work.batch, "status": status, "reason": reason}


def document(
    work: Work, method: Method, bandwidth: Bandwidth, load: float, records: Sequence[Record]
) -> Record:
    """Returns the document of a run. `work` has any batch; `load` is from before the run."""
    return {
        "model": work.model,
        "seconds": work.seconds,
        "steps": work.steps,
        "device": machine.device_name(work.device),
        "device_type": work.device.type,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda if work.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_before_per_processor": load,
        "commit": machine.commit(),
        "bandwidth_gb_per_s": bandwidth.bytes_per_second / 1e9,
        "bandwidth_measured_by": bandwidth.how,
        "method": {
            "summary": method.summary,
            "whole_clip": method.full,
            "contexts": sorted({call.prompt for call in method.calls}),
            "repeats": method.repeats,
            "steps_per_repeat": method.chunk,
            "discarded": method.discarded,
        },
        "results": [{**record, **_speedup(record, records)} for record in records],
    }


def join(documents: Sequence[Record], records: Sequence[Record]) -> Record:
    """Returns the first of a model's documents with the results `records` instead of its own."""
    further = ("stage", "name", "ok", "model", "document", "bandwidth_gb_per_s")
    results = [{k: v for k, v in record.items() if k not in further} for record in records]
    return {**documents[0], "results": [{**r, **_speedup(r, results)} for r in results]}


def _speedup(record: Record, records: Sequence[Record]) -> Record:
    """Returns how many times faster this engine is than the record's system in the same batch.

    There is a number for each measured mode of this engine.
    """
    if record["status"] != MEASURED:
        return {}
    batch = [r for r in records if r["batch"] == record["batch"] and r["status"] == MEASURED]
    median = record["ms_per_step"]["median"]
    return {
        MODES[r["system"]]: median / r["ms_per_step"]["median"]
        for r in batch
        if r["system"] in MODES
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


HEADER = (
    "system",
    "batch",
    "ms/step",
    "min-max",
    "x real time",
    "GB/s",
    "% of roofline",
    "first code ms",
    "warm-up s",
    "peak GB",
    "ours faster by",
    "fast faster by",
)


def table(document: Record) -> str:
    """Returns text for a terminal: what was measured, how, and one line per system."""
    results = document["results"]
    lines = [list(HEADER), *(_cells(r) for r in results if r["status"] == MEASURED)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    notes = [
        f"{r['system']}, batch {r['batch']}: {text}"
        for r in results
        if (text := r["note"] if r["status"] == MEASURED else f"{r['status']}, {r['reason']}")
    ]
    return "\n".join(
        [
            f"{document['model']}, {document['seconds']:g} s ({document['steps']} steps), "
            f"{document['device']}, random weights, guidance on",
            f"memory: {document['bandwidth_gb_per_s']:.1f} GB/s "
            f"({document['bandwidth_measured_by']})",
            f"measured: {document['method']['summary']}",
            f"load before the run: {document['load_before_per_processor']:.0%} per processor",
            "",
            *(
                "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
                for line in lines
            ),
            *notes,
        ]
    )


def _cells(record: Record) -> list[str]:
    step, peak = record["ms_per_step"], record["peak_memory_gb"]
    speedups = [record.get(name) for name in MODES.values()]
    return [
        record["system"],
        str(record["batch"]),
        f"{step['median']:.2f}",
        f"{step['min']:.2f}-{step['max']:.2f}",
        f"{record['real_time_factor']:.2f}",
        f"{record['gb_per_s']:.1f}",
        f"{record['roofline_percent']:.0f}",
        f"{record['first_code_ms']:.1f}",
        f"{record['warm_up_s']:.1f}",
        "?" if peak is None else f"{peak:.2f}",
        *("" if speedup is None else f"{speedup:.2f}" for speedup in speedups),
    ]


def save(document: Record, folder: Path = FOLDER) -> Path:
    """Write `<model>-<device>.json`, replacing an earlier one."""
    folder.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", document["device"].lower()).strip("-")
    path = folder / f"{document['model']}-{device}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def markdown(folder: Path = FOLDER) -> str:
    """Returns the README's table of all saved results."""
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [row for document in documents for row in _rows(document)]
    names = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    head = ["hardware", "model", "clips", "ms/step", "x real time", "roofline", "GB"]
    head += [f"against {name}" for name in names]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        baselines = [row["baselines"].get(name, "") for name in names]
        lines.append([*row["cells"], *baselines])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(document: Record) -> Iterable[Record]:
    """Yields a row for every batch and mode with which this engine was measured."""
    for mine in document["results"]:
        if mine["system"] not in MODES or mine["status"] != MEASURED:
            continue
        peak, speedup = mine["peak_memory_gb"], MODES[mine["system"]]
        yield {
            "cells": [
                document["device"],
                document["model"] + (", fast" if mine["system"] == OURS_FAST else ""),
                str(mine["batch"]),
                f"{mine['ms_per_step']['median']:.2f}",
                f"{mine['real_time_factor']:.1f}",
                f"{mine['roofline_percent']:.0f}%",
                "" if peak is None else f"{peak:.1f}",
            ],
            "baselines": {
                baseline["system"]: f"{baseline[speedup]:.1f}x"
                if baseline["status"] == MEASURED
                else baseline["status"]
                for baseline in document["results"]
                if baseline["batch"] == mine["batch"] and baseline["system"] not in MODES
            },
        }
