"""The status below the buttons: jobs that run or wait, with their progress in seconds of music."""

from html import escape
from time import monotonic
from typing import Any
from urllib.parse import quote

from musicgen.page.progress import Progress
from musicgen.page.visits import Job, Visit

DECODING = "decode"  # the stage whose steps make the music
PREVIEW = "Preview; levelled at the end"
PARTS = 4  # the progress is announced when another such part of the music has been made


def rows(visit: Visit) -> str:
    """A row with a progress bar for each job, as HTML."""
    listed = "".join(_row(job, progress) for job, progress in visit.progress())
    return f'<div class="jobs">{listed}</div>' if listed else ""


def heard(visit_id: str, visit: Visit) -> str:
    """A player of the take that is being made, as HTML, if the server sends its sound meanwhile.

    listen.js fills and plays it.
    """
    job = visit.heard
    if job is None:
        return ""
    address = f"/sounds/{quote(visit_id)}/{job.id}"
    levelled = job.inputs.get("normalization_strategy", "loudness") == "loudness"
    return (
        f'<div role="group" aria-label="The take so far" hidden data-sound="{address}" '
        f'data-take="{address}/take" data-seconds="{_length(job):g}" '
        f'data-levelled="{"yes" if levelled else ""}"><button aria-label="Play">▶</button>'
        '<div class="track"><i class="made"></i><i class="played"></i></div><output>0.0 s</output>'
        f'<span class="says">{PREVIEW}</span></div>'
    )


def announcement(visit: Visit) -> str:
    """The progress for a live region, as HTML. It changes a few times in each job only."""
    said = [_coarse(job, progress) for job, progress in visit.progress()]
    text = next(filter(None, said), "")
    return f"<p>{text}</p>" if text else ""


def _row(job: Job, progress: Progress | None) -> str:
    name = f'<span class="job">{escape(job.settings.get("prompt") or "No prompt")}</span>'
    if job.started is None:
        return f"<div>{name}<p>Waiting.</p></div>"
    seconds = monotonic() - job.started
    if progress is None:
        bar = '<progress aria-label="Working"></progress>'
        return f"<div>{name}{bar}<p>Working, {seconds:.0f} s</p></div>"
    bar = (
        f'<progress aria-label="Progress" value="{progress.done}" max="{progress.total}">'
        "</progress>"
    )
    return f"<div>{name}{bar}<p>{escape(_made(job, progress))} · {seconds:.0f} s</p></div>"


def _made(job: Job, progress: Progress) -> str:
    if progress.stage != DECODING or progress.done == progress.total:
        return "finishing"
    total = _length(job)
    done = total * progress.done / progress.total
    return f"{_clock(done)} of {_clock(total)} made · {progress.left} left"


def _coarse(job: Job, progress: Progress | None) -> str:
    if progress is None or progress.stage != DECODING:
        return ""
    total = _length(job)
    part = PARTS * progress.done // max(progress.total, 1) / PARTS
    return f"{_clock(total * part)} of {_clock(total)} made"


def _length(job: Job) -> float:
    seconds: Any = job.inputs.get("duration")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
