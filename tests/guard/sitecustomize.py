"""Refuses connections to other machines, and records their addresses in NETWORK_LOG."""

import errno
import os
import sys

LOCAL = {"127.0.0.1", "::1", "localhost", "", None}


def guard(event, arguments):
    host = {
        "socket.connect": lambda: arguments[1][0] if isinstance(arguments[1], tuple) else None,
        "socket.getaddrinfo": lambda: arguments[0],
    }.get(event, lambda: None)()
    if host not in LOCAL:
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{event} {host}\n")
        raise OSError(errno.ENETUNREACH, f"no network: {host}")


sys.addaudithook(guard)
