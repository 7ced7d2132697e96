"""What an operator watches, of all predictions at all servers; Ray exports it for Prometheus.

Ray writes `ray_` before each name.
"""

import re
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
# How Cog's answer begins and ends; the audio is between. Quotes in its logs are escaped.
FACTOR = re.compile(rb'"real_time_factor":([\d.]+)')
STAGES = re.compile(rb'"seconds":\{([^}]*)\}')
STATUS = re.compile(rb'"status":"(\w+)"')
HEAD, TAIL = 1 << 18, 64  # bytes


class Course:
    """One prediction's way through the gate: how it ends, and what its answer says."""

    def __init__(self) -> None:
        self.begun = self.placed = monotonic()
        self.state = "waiting"
        self.outcome = "gone"  # unless there is an answer before the caller leaves
        self.head = self.tail = b""

    def see(self, chunk: bytes) -> None:
        """A piece of the answer."""
        self.head += chunk[: HEAD - len(self.head)]
        self.tail = (self.tail + chunk)[-TAIL:]

    def audio_seconds(self) -> float:
        """Seconds of audio in the answer, by its metrics."""
        factor, stages = FACTOR.search(self.head), STAGES.search(self.head)
        if not factor or not stages:
            return 0.0
        return float(factor[1]) * sum(float(item.split(b":")[1]) for item in stages[1].split(b","))


class Metrics:
    """The figures of one gate."""

    def __init__(self) -> None:
        self.counts: Counts[str] = Counts()
        self.gauges = {
            "waiting": Gauge("musicgen_waiting", "Requests that wait for a place at a server."),
            "running": Gauge("musicgen_running", "Requests that a server has."),
        }
        self.requests = Counter("musicgen_requests", "Requests that ended.", ("outcome",))
        self.audio = Counter("musicgen_audio_seconds", "Seconds of audio, of what succeeded.")
        self.wait = Histogram("musicgen_waiting_seconds", "From a request to its place.", SECONDS)
        self.result = Histogram("musicgen_result_seconds", "From a request to its end.", SECONDS)

    @contextmanager
    def course(self) -> Iterator[Course]:
        """Follow one prediction; what it has become when the context ends is counted."""
        course = Course()
        self._count(course.state, 1)
        try:
            yield course
        except Exception:  # not a CancelledError, which says that the caller has left
            course.outcome = "refused" if course.state == "waiting" else "lost"
            raise
        finally:
            self._count(course.state, -1)
            if course.tail:
                found = STATUS.search(course.tail)
                course.outcome = found[1].decode() if found else "refused"
            self.requests.inc(1, {"outcome": course.outcome})
            self.result.observe(monotonic() - course.begun)
            if course.state == "running":
                self.wait.observe(course.placed - course.begun)
            if seconds := course.audio_seconds():
                self.audio.inc(seconds)

    def move(self, course: Course, state: str) -> None:
        """Let a course wait, or run at a server."""
        self._count(course.state, -1)
        self._count(state, 1)
        course.state, course.placed = state, monotonic()

    def _count(self, state: str, change: int) -> None:
        self.counts[state] += change
        self.gauges[state].set(self.counts[state])
