"""A way to a cluster that can be cut while the cluster goes on: it listens no more, and all connections are broken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from gapconn.units import Address

CHUNK_BYTES = 1 << 18


@attrs.define(eq=False)
class Proxy:
    """Carries TCP connections from `listen` to `target`, while the way is not cut."""

    listen: Address
    target: Address
    _nursery: trio.Nursery
    _open: trio.CancelScope | None = None

    async def mend(self) -> None:
        """Let connections come again."""
        await self._nursery.start(self._serve)

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        assert self._open is not None, "it is cut already"
        self._open.cancel()
        self._open = None

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._open:
            [listener] = await trio.open_tcp_listeners(self.listen.port, host=self.listen.host)
            task_status.started()
            await trio.serve_listeners(self._carry, [listener])

    async def _carry(self, client: trio.SocketStream) -> None:
        try:
            broker = await trio.open_tcp_stream(self.target.host, self.target.port)
        except OSError:  # the broker is away: this connection ends
            await trio.aclose_forcefully(client)
            return
        async with client, broker, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, client, broker, nursery.cancel_scope)
            nursery.start_soon(_copy, broker, client, nursery.cancel_scope)


async def _copy(one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Copy until either of them ends, and end both."""
    try:
        while data := await one.receive_some(CHUNK_BYTES):
            await other.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


@asynccontextmanager
async def proxy(listen: Address, target: Address) -> AsyncIterator[Proxy]:
    """Such a way, not cut."""
    async with trio.open_nursery() as nursery:
        way = Proxy(listen, target, nursery)
        await way.mend()
        yield way
        nursery.cancel_scope.cancel()
