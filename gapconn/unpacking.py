"""From a message to what of it is for the sink."""

from __future__ import annotations

from gapconn.errors import RemoteProtocolError
from gapconn.events_log import EventLog
from gapconn.offload import run_long
from gapconn.protocol.compression import inflate
from gapconn.protocol.events import MessageDelivered
from gapconn.record import Batch, Chunk, Records, decode_batch
from gapconn.repair import late_batch, repaired_batch


class Unpacker:
    """Opens messages, and leaves out what the sink has or is not to have.

    Args:
        events: Where duplicates and repairs are told.
        message_bytes_max: What the body of a message may inflate to (GC-COMP-4).
    """

    def __init__(self, events: EventLog, message_bytes_max: int) -> None:
        self._events = events
        self._message_bytes_max = message_bytes_max

    async def open(self, message: MessageDelivered) -> Batch | RemoteProtocolError:
        """What is in the message, or what is wrong with it."""
        try:
            body = await run_long(
                lambda: inflate(message.body, message.compression, message.plain_bytes, self._message_bytes_max),
                message.plain_bytes,
            )
            return decode_batch(body)
        except RemoteProtocolError as error:
            return error

    def to_deliver(self, batch: Batch, message: MessageDelivered) -> Batch:
        """What of the message's batch is for the sink."""
        if message.late and not message.spans:
            rest = late_batch(batch, message)
            self._events.delivered_late(rest.record_count)
            return rest
        if not message.spans:
            return self._without_delivered(batch, message) if message.already_delivered else batch
        repaired = repaired_batch(batch, message)
        for part in repaired.parts:
            assert isinstance(part, Records)
            self._events.records_repaired(part.stream, part.partition, len(part.positions))
        return repaired

    def _without_delivered(self, batch: Batch, message: MessageDelivered) -> Batch:
        """The batch without the records that an ingress sent again (GC-DLV-15)."""
        parts: list[Records | Chunk] = []
        for part in batch.parts:
            delivered = (
                message.already_delivered.get((part.stream, part.partition)) if isinstance(part, Records) else None
            )
            if delivered is None or not isinstance(part, Records):
                parts.append(part)
                continue
            rest = part.after(delivered)
            self._events.duplicates_dropped(part.stream, part.partition, len(part.positions) - len(rest.positions))
            if rest.positions:
                parts.append(rest)
        return Batch(origin=batch.origin, parts=parts)
