"""The command scripts/play: the page, and the Cog server beside it unless there is one."""

import argparse
import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from musicgen.commands import cli, server
from musicgen.errors import MusicGenError


def main() -> None:
    """Serve the page until it is interrupted; errors are one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="scripts/play", description="A page in the browser to play with a server."
    )
    parser.add_argument("--server", metavar="URL", help="one that runs, instead of starting one")
    parser.add_argument("--port", type=int, default=7860)
    options = cli.with_predictor(parser, sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        play(options.server, options.predictor, options.port)
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")


def play(url: str | None, predictor: str, port: int) -> None:
    """The page on a port of this machine, of the server at `url` or one of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="musicgen-page-")))
        # Read by gradio when it is imported: nothing is sent anywhere, all files end with the page.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        importing = threading.Thread(target=import_module, args=("musicgen.page.app",))
        importing.start()  # takes as long as the server
        if url is None:
            log = stack.enter_context(cli.predictions_log())
            url = stack.enter_context(server.running(predictor, log))
        importing.join()
        from musicgen.page import app
        from musicgen.page.studio import Studio

        page = app.build(Studio.open(url.rstrip("/"), folder))
        print(f"The page: http://127.0.0.1:{port}", flush=True)
        app.serve(page, port)


if __name__ == "__main__":
    main()
