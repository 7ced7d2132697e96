"""Prometheus metrics of all predictions on all servers, exported by Ray.

Ray puts `ray_` before each name.
"""

import re
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
# Cog's response has the metrics before the audio and the status after it. Quotes in logs are
# escaped, so they do not match. A streamed response has these in its last event.
LAST_EVENT = b"event: completed\n"
FACTOR = re.compile(rb'"real_time_factor":([\d.]+)')
STAGES = re.compile(rb'"seconds":\{([^}]*)\}')
STATUS = re.compile(rb'"status":"(\w+)"')
HEAD, TAIL = 1 << 18, 64  # bytes of a response that are kept


class Record:
    """One prediction in the gate: its times, its state, and both ends of its response."""

    def __init__(self) -> None:
        self.started = self.placed = monotonic()
        self.state = "waiting"
        self.outcome = "gone"  # the client has disconnected, unless a response sets another
        self.head = self.tail = b""

    def add(self, chunk: bytes) -> None:
        """Add a piece of the response."""
        recent = self.tail + chunk
        if LAST_EVENT in recent:
            self.head, chunk = b"", recent
        self.head += chunk[: HEAD - len(self.head)]
        self.tail = recent[-TAIL:]

    def audio_seconds(self) -> float:
        """Seconds of audio in the response, by its metrics."""
        factor, stages = FACTOR.search(self.head), STAGES.search(self.head)
        if not factor or not stages:
            return 0.0
        return float(factor[1]) * sum(float(item.split(b":")[1]) for item in stages[1].split(b","))


class Metrics:
    """The metrics of one gate."""

    def __init__(self) -> None:
        self.counts: Counts[str] = Counts()
        self.gauges = {
            "waiting": Gauge("musicgen_waiting", "Requests that wait for a slot of a server."),
            "running": Gauge("musicgen_running", "Requests that a server is running."),
        }
        self.requests = Counter("musicgen_requests", "Requests that ended.", ("outcome",))
        self.audio = Counter("musicgen_audio_seconds", "Seconds of generated audio.")
        self.wait = Histogram("musicgen_waiting_seconds", "Seconds until a slot is free.", SECONDS)
        self.result = Histogram("musicgen_result_seconds", "Seconds until a request ends.", SECONDS)

    @contextmanager
    def track(self) -> Iterator[Record]:
        """A record of one prediction, counted by its outcome when the context ends."""
        record = Record()
        self._count(record.state, 1)
        try:
            yield record
        except Exception:  # not CancelledError: that means that the client has disconnected
            record.outcome = "refused" if record.state == "waiting" else "lost"
            raise
        finally:
            self._count(record.state, -1)
            if record.tail:
                found = STATUS.search(record.tail)
                record.outcome = found[1].decode() if found else "refused"
            self.requests.inc(1, {"outcome": record.outcome})
            self.result.observe(monotonic() - record.started)
            if record.state == "running":
                self.wait.observe(record.placed - record.started)
            if seconds := record.audio_seconds():
                self.audio.inc(seconds)

    def set_state(self, record: Record, state: str) -> None:
        """Set the state of a prediction to "waiting" or "running"."""
        self._count(record.state, -1)
        self._count(state, 1)
        record.state, record.placed = state, monotonic()

    def _count(self, state: str, change: int) -> None:
        self.counts[state] += change
        self.gauges[state].set(self.counts[state])
