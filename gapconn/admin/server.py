"""The admin endpoint of one end: HTTP on Trio by Hypercorn, inside the caller's nursery.

Connections are accepted here and not by `hypercorn.trio.serve`, for three reasons. Hypercorn shields its writes from
cancellation, so a client that reads nothing would keep the service from stopping: here its socket is closed. An error
in the handling of one connection would end the service: here it is logged. And the number of connections is bounded.
"""

from __future__ import annotations

from typing import Any, Final, cast

import attrs
import structlog
import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app

from gapconn.admin.pages import make_app
from gapconn.admin.view import AdminView
from gapconn.errors import LinkError
from gapconn.throttle import ThrottledLog
from gapconn.units import Address

CONNECTIONS_MAX: Final = 64
"""At once. A connection more is closed at once: scrapers and probes need a handful."""

CONNECTION_LIMIT_S: Final = 60.0
"""Then a connection is closed, whatever it does: nobody can hold one for ever by sending or reading slowly."""

IDLE_LIMIT_S: Final = 2.0
"""How long a connection may be silent between requests. Short, as Hypercorn also holds one that the client closed."""

_READ_TIMEOUT_S: Final = 10

log = structlog.get_logger(__name__)


async def serve_admin(
    listen: Address,
    view: AdminView,
    *,
    setting: str = "[admin] listen",
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `view` at `listen` until cancelled; ends at once then, whatever the clients do.

    Args:
        listen: Port 0 takes a free one.
        setting: The key that says so, for errors.
        task_status: Told the address once connections are accepted.

    Raises:
        LinkError: the address cannot be listened on.
    """
    try:
        listeners = await trio.open_tcp_listeners(listen.port, host=listen.host)
    except OSError as error:
        raise LinkError(
            f"{setting} = {str(listen)!r} cannot be used: {error}. Is another gapconn running on this host? Give"
            " each its own address, in the file or by GAPCONN_ADMIN_LISTEN"
        ) from error
    host, port = listeners[0].socket.getsockname()[:2]
    task_status.started(Address(host, port))
    app = cast("Framework", make_app(view))  # Hypercorn describes ASGI's messages in more detail than Starlette does
    await trio.serve_listeners(_Connections(app).handle, listeners)


@attrs.define
class _Connections:
    app: Framework
    _config: Config = attrs.field(init=False)
    _context: WorkerContext = attrs.field(init=False, factory=lambda: WorkerContext(max_requests=None))
    _open: int = attrs.field(init=False, default=0)
    _log: ThrottledLog = attrs.field(init=False, factory=lambda: ThrottledLog(log))

    def __attrs_post_init__(self) -> None:
        self._config = Config()
        self._config.logger_class = _HypercornLog
        self._config.include_server_header = False
        self._config.keep_alive_timeout = IDLE_LIMIT_S
        self._config.read_timeout = _READ_TIMEOUT_S

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Never raises: no client may end the service."""
        if self._open >= CONNECTIONS_MAX:
            self._log.warning("admin_connection_refused", limit=CONNECTIONS_MAX)
            stream.socket.close()
            return
        self._open += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_at_the_end, stream)
                await self._protocol(stream).run()
                nursery.cancel_scope.cancel()
        except* Exception as error:
            self._log.warning("admin_connection_failed", exc_info=error)
        finally:
            self._open -= 1

    def _protocol(self, stream: trio.SocketStream) -> TCPServer:
        return TCPServer(
            wrap_app(self.app, self._config.wsgi_max_body_size, "asgi"),
            self._config,
            self._context,
            ConnectionState({}),
            cast("trio.SSLStream[trio.SocketStream]", stream),  # it takes both, and its annotation says only this one
        )


async def _close_at_the_end(stream: trio.SocketStream) -> None:
    try:
        await trio.sleep(CONNECTION_LIMIT_S)
    finally:
        stream.socket.close()  # also wakes a shielded write


class _HypercornLog(Logger):
    """Hypercorn reports errors of the pages, and of clients that it cannot follow, here. Requests are not logged."""

    def __init__(self, config: Config) -> None:
        self.access_logger = None
        self.error_logger = None
        self._log = ThrottledLog(log)

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._log.warning("admin_request_failed", said=message, exc_info=True)

    async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._log.warning("admin_request_failed", said=message)
