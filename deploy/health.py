"""Health check for a container: exit code 0 while the server can take predictions.

Cog answers /health-check with HTTP 200 in every state and never restarts a crashed worker, so this
reads the state. If the server cannot recover, it sends SIGTERM to the container's first process:
the container ends, and its restart policy starts a new one.

    python health.py [--url http://127.0.0.1:5000] [--pid 1]
"""

import argparse
import json
import os
import signal
import sys
from urllib.request import urlopen

READY = ("READY", "BUSY")
FATAL = ("UNHEALTHY", "SETUP_FAILED", "DEFUNCT")


def main() -> None:
    parser = argparse.ArgumentParser(description="Check one server; end it if it cannot recover.")
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--pid", type=int, default=1, help="the process to end")
    options = parser.parse_args()
    with urlopen(f"{options.url}/health-check", timeout=8) as response:
        status = json.load(response)["status"]
    print(status)
    if status in FATAL:
        os.kill(options.pid, signal.SIGTERM)
    sys.exit(status not in READY)


if __name__ == "__main__":
    main()
