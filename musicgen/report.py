"""What a server tells about its work: log lines and the seconds that stages take."""

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


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[stage]`."""
    start = perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - start
