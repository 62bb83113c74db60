"""The option `[sink.dedup]`: one link brings records twice, such as those of two mirror ports of a switch."""

from __future__ import annotations

import time
from itertools import compress
from typing import Literal

import attrs
from attrs.validators import ge, le

from gapconn.config import option
from gapconn.dedup.identity import make_fingerprint
from gapconn.dedup.window import Window
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, Records
from gapconn.sinks import Delivery
from gapconn.units import Seconds


def _needed_by(identity: str) -> object:
    def check(section: SinkDedup, attribute: attrs.Attribute[str], value: str) -> None:
        if section.identity == identity and not value:
            raise ValueError(f'missing, and identity = "{identity}" needs it')
        if value and section.identity != identity:
            raise ValueError(f'no use for it while identity is not "{identity}"')

    return check


@attrs.frozen(kw_only=True)
class SinkDedup:
    """`[sink.dedup]`: leave out records that came before over this link."""

    identity: Literal["none", "hash", "field", "header"] = option(
        default="none",
        help="What two copies have in common: all of key and value (`hash`; then two equal records are one), a field "
        "of a JSON value, or a header. `none` leaves nothing out. Copies over two links: `gapconn dedup`.",
    )
    header: str = option(
        default="", help='Name of the header for `identity = "header"`.', validator=_needed_by("header")
    )
    field: str = option(
        default="",
        help='Path of the field for `identity = "field"`, such as `order.id`.',
        validator=_needed_by("field"),
    )
    window: Seconds = option(
        default=Seconds(10.0),
        help="How long an id is remembered, in memory: a restart forgets it.",
        allowed='"100ms" to "24h"',
        validator=[ge(0.1), le(86400)],
    )
    window_records: int = option(
        default=100_000,
        help="At least so many of the last ids are remembered, for as long as `window` says; each takes about 120 "
        "bytes of memory.",
        allowed="1 to 20000000",
        validator=[ge(1), le(20_000_000)],
    )


class RepeatFilter:
    """Takes the repeats out of deliveries, and counts them (`repeats_dropped`). What has no id passes."""

    def __init__(self, config: SinkDedup, context: Context) -> None:
        self._fingerprint = None
        if config.identity != "none":
            self._fingerprint = make_fingerprint(config.identity, header=config.header, field=config.field)
        self._window = Window(records_max=config.window_records, age_max_s=config.window)
        self._counters = context.counters

    def of(self, delivery: Delivery) -> Delivery:
        """The delivery without repeats; perhaps with nothing in it, which is still to be accepted."""
        # What is sent again as repair is missing, also where it came before and the target did not take it.
        if self._fingerprint is None or delivery.repair:
            return delivery
        parts: list[Records | Chunk] = []
        for part in delivery.batch.parts:
            kept = self._kept(part) if isinstance(part, Records) else part
            if kept is not None:
                parts.append(kept)
        self._window.close_chunk(time.time())
        return attrs.evolve(delivery, batch=Batch(origin=delivery.batch.origin, parts=parts))

    def _kept(self, records: Records) -> Records | None:
        assert self._fingerprint is not None
        count = len(records.positions)
        keys = records.keys or [None] * count
        headers = records.headers or [None] * count
        fresh = []
        for key, value, own in zip(keys, records.values, headers, strict=True):
            each = self._fingerprint(records.stream, key, value, own)
            fresh.append(each is None or self._window.take([each])[0])
        if all(fresh):
            return records
        self._counters["repeats_dropped"] += fresh.count(False)
        return only_rows(records, fresh) if any(fresh) else None


def only_rows(records: Records, wanted: list[bool]) -> Records:
    """The same run with only those rows."""
    return Records(
        stream=records.stream,
        partition=records.partition,
        previous=records.previous,
        positions=list(compress(records.positions, wanted)),
        values=list(compress(records.values, wanted)),
        keys=None if records.keys is None else list(compress(records.keys, wanted)),
        headers=None if records.headers is None else list(compress(records.headers, wanted)),
        timestamps_ms=None if records.timestamps_ms is None else list(compress(records.timestamps_ms, wanted)),
        timestamp_type=records.timestamp_type,
    )
