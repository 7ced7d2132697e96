"""What a server says of its work: log lines, and the seconds that stages take."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


def log_to_stderr() -> None:
    """Show this package's log lines, and of other libraries only what is a warning.

    Cog attaches what is written during a prediction to its answer.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("musicgen").setLevel(logging.INFO)


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
        """Each stage, and how many seconds of audio the request got per second of its own time.

        That counts waiting for a slot and sharing the model with others: it is what the caller
        sees, not what the server can do.
        """
        stages = {f"seconds.{name}": round(value, 4) for name, value in self.seconds.items()}
        return {**stages, "real_time_factor": round(audio_seconds / sum(self.seconds.values()), 3)}
