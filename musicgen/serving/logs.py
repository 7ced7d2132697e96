"""Log lines of a server."""

import logging

from musicgen.runtime.printable import printable


class OneLine(logging.Formatter):
    """Writes each message on one line, whatever names of files and other texts it contains."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return printable(super().formatMessage(record))


def log_to_stderr() -> None:
    """Show this package's log lines, and warnings of other libraries.

    Cog attaches everything written during a prediction to its response.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("musicgen").setLevel(logging.INFO)
