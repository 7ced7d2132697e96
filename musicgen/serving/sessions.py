"""HTTP sessions with a deadline for all transfers, and a check of the addresses they use."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session


@contextmanager
def bounded(
    session: "Session", seconds: float, check: Callable[[str], None] = lambda address: None
) -> Iterator[None]:
    """Shut down the connections of `session` after so many seconds, even if data still flows.

    Socket timeouts cannot do that: they restart with every few bytes. This includes connections to
    a proxy, and those of google-auth's second session, which fetches tokens. `check` gets the IP
    address of each connection that uses no proxy before anything is sent, and may raise.
    """
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    opened: list[socket.socket] = []

    def bounded_pool(pool: Any) -> type:
        class Connection(pool.ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                connection: socket.socket = super()._new_conn()
                try:
                    if self.proxy is None:
                        check(connection.getpeername()[0])
                except BaseException:
                    connection.close()
                    raise
                opened.append(connection)
                return connection

            def connect(self) -> None:
                super().connect()
                opened.append(self.sock)

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

    def shut_down() -> None:
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    for part in filter(None, (session, getattr(session, "_auth_request_session", None))):
        part.mount("https://", Adapter())
        part.mount("http://", Adapter())
    timer = Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
