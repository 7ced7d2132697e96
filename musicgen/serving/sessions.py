"""HTTP sessions with a deadline for all transfers, and a check of the addresses they use."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Timer
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session


class Deadline:
    """Shuts down a session's connections at a time, and refuses later ones."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds
        self._lock = Lock()
        self._connections: list[socket.socket] = []
        self._timer = Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def left(self) -> float:
        """Seconds until the deadline. Raises TimeoutError after it."""
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left

    def add(self, connection: socket.socket) -> None:
        """Shut down this connection at the deadline. Raises TimeoutError after it."""
        with self._lock:
            # A duplicate, because TLS detaches the socket object from the connection.
            self._connections.append(connection.dup())
        self.left()  # the timer may have run before this connection was added

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _shut_down(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def bounded(
    session: "Session", seconds: float, check: Callable[[str], None] = lambda address: None
) -> Iterator[None]:
    """Shut down the connections of `session` after so many seconds, even if data still flows.

    Socket timeouts cannot do that: they restart with every few bytes, and with every address of a
    host. The deadline covers TLS handshakes and redirects, connections to a proxy, and those of
    google-auth's second session, which fetches tokens. `check` gets the IP address of each
    connection that uses no proxy before anything is sent, and may raise.
    """
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    deadline = Deadline(seconds)

    def bounded_pool(pool: Any) -> type:
        class Connection(pool.ConnectionCls):  # type: ignore[misc]
            _dns_host: str
            port: int
            timeout: float | None

            def _new_conn(self) -> socket.socket:
                connection = self._connect()
                try:
                    if self.proxy is None:
                        check(connection.getpeername()[0])
                    deadline.add(connection)
                except BaseException:
                    connection.close()
                    raise
                return connection

            def _connect(self) -> socket.socket:
                """Try the host's addresses in order, within the time that is left."""
                host = self._dns_host
                addresses = _addresses(host, self.port)
                try:
                    while True:
                        self._dns_host = addresses.pop(0)
                        self.timeout = min(self.timeout or seconds, deadline.left())
                        try:
                            connection: socket.socket = super()._new_conn()
                            return connection
                        except (ConnectTimeoutError, NewConnectionError):
                            if not addresses:
                                raise
                finally:
                    self._dns_host = host

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    pools = {
        "http": bounded_pool(HTTPConnectionPool),
        "https": bounded_pool(HTTPSConnectionPool),
    }

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(*args, **kwargs)
            manager.pool_classes_by_scheme = pools
            return manager

    for part in filter(None, (session, getattr(session, "_auth_request_session", None))):
        part.mount("https://", Adapter())
        part.mount("http://", Adapter())
    try:
        yield
    finally:
        deadline.close()


def _addresses(host: str, port: int) -> list[str]:
    """The IP addresses of a host; the host itself if they cannot be found."""
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return [host]
