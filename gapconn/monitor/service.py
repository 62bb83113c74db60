"""The monitor as a process: a nursery with a watcher for each pair, its page, and the signals that end it."""

from __future__ import annotations

import logging
import signal
from functools import partial
from typing import Final

import structlog
import trio

from gapconn.admin.server import serve_admin
from gapconn.errors import LinkError
from gapconn.monitor.config import MonitorSettings
from gapconn.monitor.gap_reports import GapReporter
from gapconn.monitor.memory import Memory
from gapconn.monitor.notify import Notifier
from gapconn.monitor.view import MonitorView
from gapconn.monitor.watch import Watcher

REMEMBER_INTERVAL_S: Final = 2.0


async def serve_monitor(settings: MonitorSettings) -> None:
    """Watch until a signal ends it. Nothing is changed at the end: what is held stays held, what works goes on.

    Raises:
        GapconnError: it cannot start.
    """
    monitor = settings.monitor
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each request
    log = structlog.get_logger().bind(monitor=monitor.name)
    memory = Memory(monitor.state_file)
    remembered = await trio.to_thread.run_sync(memory.load)
    notifier = Notifier(settings.notify, monitor.name, monitor.action_timeout)
    watchers = [Watcher(pair, monitor, notifier, remembered.get(pair.name)) for pair in settings.pairs]
    view = MonitorView(monitor.name, watchers, notifier)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(partial(serve_admin, setting="[monitor] listen"), monitor.listen, view)
            log.info("admin_listening", address=str(bound))
            log.info("monitor_started", pairs=[pair.name for pair in settings.pairs])
            nursery.start_soon(notifier.run, name="monitor.notify")
            nursery.start_soon(_remember, memory, watchers, log, name="monitor.memory")
            for watcher in watchers:
                nursery.start_soon(watcher.run, name=f"monitor.watch {watcher.pair.name}")
                if watcher.pair.settings.gap_reports:
                    reporter = GapReporter(watcher, notifier)
                    nursery.start_soon(reporter.run, name=f"monitor.gaps {watcher.pair.name}")
            async for number in signals:
                log.info("monitor_stopped", signal=signal.Signals(number).name, effect="everything stays as it is")
                nursery.cancel_scope.cancel()
                break


async def _remember(memory: Memory, watchers: list[Watcher], log: structlog.typing.FilteringBoundLogger) -> None:
    """Store what changed: which pairs are out at once, positions now and then."""
    stored = None
    failing = False
    next_s = 0.0
    while True:
        now_s = trio.current_time()
        if now_s >= next_s or any(watcher.changed for watcher in watchers):
            next_s = now_s + REMEMBER_INTERVAL_S
            pairs = {watcher.pair.name: watcher.memory for watcher in watchers}
            for watcher in watchers:
                watcher.changed = False
            if pairs != stored:
                try:
                    await trio.to_thread.run_sync(memory.save, pairs)
                    stored, failing = pairs, False
                except LinkError as error:
                    if not failing:
                        log.error("monitor_state_not_stored", error=str(error))
                    failing = True
        await trio.sleep(0.1)
