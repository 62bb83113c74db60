"""Records out of nothing, for benches and trials. The discard sink verifies them (`gapconn.selfcheck`)."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import trio

from gapconn.config import option
from gapconn.plugins import Carries, Context
from gapconn.record import NO_POSITION, Batch, Records
from gapconn.selfcheck import HEAD_BYTES, STREAM, Pattern
from gapconn.sources import Outlet
from gapconn.units import BitsPerSecond, Bytes

_RECORD_OVERHEAD_BYTES = 14  # a position and a length, as MessagePack
_BATCH_SECONDS_MAX = 0.02  # with a rate: how much of a second one batch may hold
_CATCH_UP_S = 0.1  # how far behind its rate the source may fall and still make it up


@attrs.frozen(kw_only=True)
class GenerateConfig:
    """Keys of `[source]` with `type = "generate"`."""

    size_bytes: Bytes = option(
        help="Size of one record.",
        default=Bytes(1024),
        validator=attrs.validators.ge(HEAD_BYTES),
        allowed=">= 16 bytes",
    )
    count: int = option(help="How many records; 0 for no end.", default=0, validator=attrs.validators.ge(0))
    rate: BitsPerSecond = option(
        help="Payload bits per second; 0 for as fast as the link takes them.",
        default=BitsPerSecond(0),
        validator=attrs.validators.ge(0),
    )


class GenerateSource:
    """Makes numbered, self-checking records of one size."""

    Config: ClassVar[type[Any]] = GenerateConfig
    carries: ClassVar[Carries] = Carries.RECORDS

    def __init__(self, config: GenerateConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._number = 0
        """Of the next record, in this session."""

    async def run(self, outlet: Outlet) -> None:
        """Send `count` records, at `rate`."""
        size_bytes, count, rate_bps = self._config.size_bytes, self._config.count, self._config.rate
        pattern = Pattern(size_bytes=size_bytes, seed=self._context.epoch)
        per_batch = max(1, outlet.batch_bytes // (size_bytes + _RECORD_OVERHEAD_BYTES))
        if rate_bps:
            per_batch = min(per_batch, max(1, int(rate_bps * _BATCH_SECONDS_MAX / (8 * size_bytes))))
        number = self._number
        first_position = self._context.first_position
        due = trio.current_time()
        while not count or number < count:
            n = min(per_batch, count - number) if count else per_batch
            position = first_position + number
            records = Records(
                stream=STREAM,
                previous=position - 1 if number else NO_POSITION,  # each session begins a chain of its own
                positions=list(range(position, position + n)),
                values=pattern.values(number, n),
            )
            await outlet.send(Batch(origin=self._context.origin, parts=[records]))
            number = self._number = number + n
            self._context.status.update(generated=number, generated_bytes=number * size_bytes)
            if rate_bps:
                due = max(due + 8 * n * size_bytes / rate_bps, trio.current_time() - _CATCH_UP_S)
                await trio.sleep_until(due)
