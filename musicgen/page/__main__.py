"""The command scripts/play: a web page, with a Cog server of its own unless there is one."""

import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from musicgen.commands import cli, options, server
from musicgen.errors import MusicGenError


def main() -> None:
    """Serve the page until it is interrupted. An error is one line and exit code 1."""
    parser = options.make_parser("play", "Serve a web page for a MusicGen server.")
    parser.add_argument(
        "--server", metavar="URL", help="use this running server instead of starting one"
    )
    parser.add_argument("--port", type=int, default=7860)
    options.add_model_options(parser)
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        if not parsed.server:
            options.choose_weights(parsed.weights)
        play(parsed.server, parsed.predictor, parsed.port)
    except (MusicGenError, OSError) as exc:
        sys.exit(f"Error: {exc}")


def play(url: str | None, predictor: str, port: int) -> None:
    """Serve the page on a port of this machine, for the server at `url` or for a new one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="musicgen-page-")))
        # gradio reads these when it is imported. It sends no usage data, and its files end up in a
        # folder that is removed when the page ends.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        # Importing gradio takes as long as starting the server.
        importing = threading.Thread(target=import_module, args=("musicgen.page.app",))
        importing.start()
        if url is None:
            log = stack.enter_context(cli.prediction_log())
            url = stack.enter_context(server.running(predictor, log))
        importing.join()
        from musicgen.page import app
        from musicgen.page.backend import Backend

        page = app.build(Backend.connect(url.rstrip("/"), folder))
        print(f"The page is ready: http://127.0.0.1:{port} (ctrl-C stops it)", flush=True)
        app.serve(page, port)


if __name__ == "__main__":
    main()
