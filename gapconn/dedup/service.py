"""What `gapconn dedup` runs: the deduplicator and its alarms."""

from __future__ import annotations

import time
from typing import Any

import structlog
import trio
from confluent_kafka import Message

from gapconn.dedup.config import DedupFile
from gapconn.dedup.datagrams import DatagramDedup
from gapconn.dedup.deduplicator import Deduplicator, OriginDeduplicator, WindowDeduplicator
from gapconn.dedup.identity import make_fingerprint
from gapconn.dedup.kafka import KafkaDedup
from gapconn.dedup.links import LinkBook
from gapconn.dedup.window import Window
from gapconn.plugins import Context


class DedupService:
    """What runs, and what it shows."""

    def __init__(self, file: DedupFile) -> None:
        self.file = file
        self.log = structlog.get_logger().bind(dedup=file.dedup.name)
        self.context = Context(link=file.dedup.name, link_id=0, epoch=0, log=self.log)
        self.book = LinkBook.of(
            file.links,
            silent_after_s=file.dedup.silent_after,
            lag_after_s=file.dedup.lag_after,
            lag_offsets_max=file.dedup.lag_offsets,
        )
        self.facts: dict[str, int] = {}
        """Numbers that the deduplicator showed last."""
        self.started_at_s = time.monotonic()
        self.stopping = False
        self.kafka: KafkaDedup | None = None
        self.datagrams: DatagramDedup | None = None

    async def run(self) -> None:
        """Work until `stop`."""
        if self.file.kafka is not None:
            self.kafka = KafkaDedup(self.file, self.context, self.book, self._make, self._look)
            await self.kafka.run()
            return
        deduplicator: WindowDeduplicator[int] = self._make_by_window()
        self.datagrams = DatagramDedup(self.file, self.context, deduplicator)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_now_and_then, deduplicator)
            await self.datagrams.run()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping = True
        if self.kafka is not None:
            self.kafka.stop()
        if self.datagrams is not None:
            self.datagrams.stop()

    def _make(self) -> Deduplicator[Message]:
        dedup = self.file.dedup
        if dedup.identity != "origin":
            return self._make_by_window()
        return OriginDeduplicator(
            book=self.book,
            unidentified=dedup.unidentified,
            holes_max=dedup.holes_max,
            hold_s=dedup.hold,
            hold_bytes_max=dedup.hold_bytes,
        )

    def _make_by_window(self) -> WindowDeduplicator[Any]:
        dedup = self.file.dedup
        assert dedup.identity != "origin"
        return WindowDeduplicator(
            book=self.book,
            unidentified=dedup.unidentified,
            fingerprint=make_fingerprint(dedup.identity, header=dedup.header, field=dedup.field),
            window=Window(records_max=dedup.window_records, age_max_s=dedup.window),
        )

    def _look(self, deduplicator: Deduplicator[Any]) -> None:
        for link, alarm, sentence in self.book.look(time.monotonic(), deduplicator.trails()):
            if sentence is None:
                self.log.info("link_recovered", input=link, alarm=alarm.value)
            elif alarm.value == "link_silent":
                self.log.error("link_silent", input=link, what=sentence)
            else:
                self.log.error("link_lagging", input=link, what=sentence)
        self.facts = deduplicator.facts()

    async def _look_now_and_then(self, deduplicator: WindowDeduplicator[int]) -> None:
        while True:
            self._look(deduplicator)
            await trio.sleep(1.0)
