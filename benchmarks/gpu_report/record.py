"""The report: one JSON line per result, written at once, so that nothing is lost if a stage dies.

A result is {"stage": ..., "name": ..., ...}; `ok` is False if it shows a fault. The end of a stage
is {"stage": ..., "end": "done" | "failed" | "timeout" | "skipped" | "lost", ...}.
"""

import json
import os
from pathlib import Path
from typing import Any

REPORT = "report.jsonl"
DONE, FAILED, TIMEOUT, SKIPPED, LOST = "done", "failed", "timeout", "skipped", "lost"


class Report:
    """The report in a folder; several processes may append to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / REPORT

    def add(self, stage: str, **values: Any) -> None:
        """Append a line, and wait until it is on the disk."""
        line = json.dumps({"stage": stage, **values}) + "\n"
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All lines; a line that was cut by the end of a process is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def ends(self) -> dict[str, str]:
        """How each stage ended the last time it was started."""
        return {line["stage"]: line["end"] for line in self.lines() if "end" in line}

    def results(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The results of one stage or of all; of results with the same name, the last."""
        found = {
            (line["stage"], line["name"]): line
            for line in self.lines()
            if "name" in line and stage in (None, line["stage"])
        }
        return list(found.values())


class Recorder:
    """The results of one stage."""

    def __init__(self, report: Report, stage: str) -> None:
        self.report = report
        self.stage = stage
        self.known = {result["name"] for result in report.results(stage)}

    def needs(self, name: str) -> bool:
        """Whether an earlier run of the stage has not recorded this result."""
        return name not in self.known

    def add(self, name: str, *, ok: bool = True, **values: Any) -> None:
        """Record and print a result. `ok` is False if it shows a fault."""
        self.report.add(self.stage, name=name, ok=ok, **values)
        print(f"{self.stage}: {name}: {'' if ok else 'FAULT '}{values}", flush=True)
