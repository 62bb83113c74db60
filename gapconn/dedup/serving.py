"""`gapconn dedup` as a service: the deduplicator, its admin endpoint, and how it stops."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Final

import trio

from gapconn.admin.server import serve_admin
from gapconn.dedup.config import DedupFile
from gapconn.dedup.service import DedupService
from gapconn.dedup.view import DedupView

STOP_GRACE_S: Final = 30.0
"""Then it ends, whatever is under way: what was not committed is read again."""


async def serve_dedup(file: DedupFile) -> None:
    """Run the deduplicator of `file` until a signal asks it to stop.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """
    service = DedupService(file)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, service, signals, nursery)
            if file.admin is not None:
                bound = await nursery.start(serve_admin, file.admin.listen, DedupView(service))
                service.log.info("admin_listening", address=str(bound))
            await service.run()
            service.log.info("dedup_stopped")
            nursery.cancel_scope.cancel()


async def _stop_on_signal(service: DedupService, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
    async for number in signals:
        service.log.info("stopping", signal=signal.Signals(number).name, grace_s=STOP_GRACE_S)
        if not service.stopping:
            service.stop()
            nursery.start_soon(_end_grace, nursery)


async def _end_grace(nursery: trio.Nursery) -> None:
    await trio.sleep(STOP_GRACE_S)
    nursery.cancel_scope.cancel()
