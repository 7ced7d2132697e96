"""Log lines of a server."""

import logging


def log_to_stderr() -> None:
    """Show this package's log lines, and warnings of other libraries.

    Cog attaches everything written during a prediction to its response.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("musicgen").setLevel(logging.INFO)
