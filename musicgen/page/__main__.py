"""The command scripts/play: a web page, with a Cog server of its own unless there is one."""

import os
import sys
import threading
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from musicgen.commands import log, options, server, temporary
from musicgen.serving import upload_key


def main() -> None:
    """Serve the page until it is interrupted. An error is one line and exit code 1."""
    parser = options.make_parser("play", "Serve a web page for a MusicGen server.")
    parser.add_argument(
        "--server", metavar="URL", help="use this running server instead of starting one"
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the takes in this folder, also those of earlier runs (default: until the end)",
    )
    # A take can then be heard while it is made.
    options.add_model_options(parser, default="streaming")
    parsed = parser.parse_args()
    with options.exit_codes(terminated=0):
        if parsed.server:
            upload_key.take()  # the page needs none
        options.check_port("127.0.0.1", parsed.port)
        if not parsed.server:
            options.choose_weights(parsed.weights)
        play(parsed.server, parsed.predictor, parsed.port, parsed.keep)


def play(url: str | None, predictor: str, port: int, keep: Path | None) -> None:
    """Serve the page on a port of this machine, for the server at `url` or for a new one."""
    with ExitStack() as stack:
        own = stack.enter_context(temporary.folder())
        # gradio reads these when it is imported. It sends no usage data, and its files end up in a
        # folder that is removed when the page ends.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(own.path)}
        # Importing gradio takes as long as starting the server.
        importing = threading.Thread(target=import_module, args=("musicgen.page.app",), daemon=True)
        importing.start()
        if url is None:
            stream = stack.enter_context(log.read_by(log.Predictions(sys.stderr)))
            url = stack.enter_context(server.running(predictor, stream))
        importing.join()
        from musicgen.page import app
        from musicgen.page.backend import Backend
        from musicgen.page.visits import Visits

        backend = Backend.connect(url.rstrip("/"), own.path)
        kept = keep.expanduser().resolve() if keep else None
        visits = Visits(backend, kept)
        stack.callback(visits.close)
        app.serve(app.build(backend, visits), visits, port, kept)
        print(f"The page is ready: http://127.0.0.1:{port} (ctrl-C stops it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
