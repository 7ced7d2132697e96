"""How long each stage of a request takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Timings:
    """Wall seconds of one request's stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = perf_counter()
        yield
        self.add(name, perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def metrics(self, audio_seconds: float) -> dict[str, float]:
        """Seconds of each stage, and the real-time factor: seconds of audio per wall second.

        The wall seconds include waiting for a slot and decoding beside other requests, so this is
        what the caller experiences, not what the server can do.
        """
        stages = {f"seconds.{name}": round(value, 4) for name, value in self.seconds.items()}
        return {**stages, "real_time_factor": round(audio_seconds / sum(self.seconds.values()), 3)}
