"""The end of a report: its text, its exit code, and documents like those of scripts/bench."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.record import DONE, FAILED, TIMEOUT, Report
from benchmarks.gpu_report.stages import STAGES


def exit_code(report: Report, wanted: Sequence[str]) -> int:
    """Returns 0 without a fault, 1 with one, 2 if stages are missing; see `runner`."""
    ends = report.ends()
    if any(not result["ok"] for result in report.results()):
        return 1
    if any(ends.get(name) in (FAILED, TIMEOUT) for name in wanted):
        return 1
    return 0 if all(ends.get(name) == DONE for name in wanted) else 2


def text(report: Report) -> str:
    """Returns a line per stage, a line per speed, and every fault."""
    ends = report.ends()
    lines = [f"{stage.name}: {ends.get(stage.name, 'not started')}" for stage in STAGES]
    for result in report.results():
        if "ms_per_step" in result:
            lines.append(speed_line(result))
        if not result["ok"]:
            details = {key: value for key, value in result.items() if key not in ("stage", "name")}
            lines.append(f"FAULT {result['stage']}: {result['name']}: {str(details)[:500]}")
    return "\n".join(lines)


def speed_line(result: dict[str, Any]) -> str:
    """Returns the measured step, its operations and, if there is one, the prediction."""
    measured = result["ms_per_step"]["median"]
    line = f"{result['stage']}: {result['name']}: {measured:.2f} ms per step ({result['note']})"
    plan = result.get("predicted")
    if plan:
        predicted = plan["ms_per_step"]
        line += f", predicted {predicted:.2f} ms: {predicted / measured - 1:+.0%}"
    return line


def save(report: Report, folder: Path, into_results: bool) -> list[Path]:
    """Write a document per model: this engine and the baselines of all numbers of clips."""
    saved: list[Path] = []
    speeds = report.results("speed")
    if not speeds:
        return saved
    # Imports torch, which a report without results does not need.
    from benchmarks import report as bench

    others = [r for stage in ("baseline", "baselines") for r in report.results(stage)]
    for model in dict.fromkeys(result["model"] for result in speeds):
        mine = [result for result in speeds if result["model"] == model]
        records = mine + [result for result in others if result["model"] == model]
        document = bench.join([result["document"] for result in mine], records)
        folders = [folder, bench.FOLDER] if into_results else [folder]
        saved += [bench.save(document, place) for place in folders]
    return saved
