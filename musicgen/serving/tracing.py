"""The stages of a request as OpenTelemetry spans, below the span of Cog's prediction.

Cog creates its own spans when the server runs with COG_TRACE_CONFIGURED=1 (docs/tracing.md), and
makes its span the current one before it calls the predictor. Without the OpenTelemetry packages,
or without that setting, nothing is recorded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from musicgen.runtime.timings import Timings

NANOSECONDS = 1_000_000_000


class TracedTimings(Timings):
    """Timings that also remember when each stage ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[str, float, int]] = []  # stage, its seconds, time in ns

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage that ends now, or at the start of the one that is added next."""
        super().add(name, seconds)
        self.ended.append((name, seconds, time.time_ns()))

    def spans(self) -> list[tuple[str, int, int]]:
        """(stage, start, end) in nanoseconds since 1970, in order of their ends.

        Waiting and decoding are added together when both are over, so a stage ends where the
        following one starts, unless it was added earlier.
        """
        found: list[tuple[str, int, int]] = []
        following = time.time_ns()
        for name, seconds, ended in reversed(self.ended):
            end = min(ended, following)
            following = end - int(seconds * NANOSECONDS)
            found.append((name, following, end))
        return found[::-1]


@contextmanager
def traced_timings() -> Iterator[Timings]:
    """Timings of one request. When the block ends, its stages become spans, also if it fails."""
    timings = TracedTimings()
    try:
        yield timings
    finally:
        with suppress(ImportError):  # the OpenTelemetry packages are optional
            _export(timings)


def _export(timings: TracedTimings) -> None:
    from opentelemetry import trace

    tracer = trace.get_tracer("musicgen")
    for name, start, end in timings.spans():
        tracer.start_span(f"musicgen.{name}", start_time=start).end(end_time=end)
