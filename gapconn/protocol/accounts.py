"""The accounts of the followed session: what became of each of its messages, and which records are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gapconn.protocol.counters import ReceiverCounters
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import (
    Event,
    MessageDelivered,
    MessageSettled,
    MessagesLost,
    RecordsLost,
    RecordsMissing,
)
from gapconn.protocol.positions import DeliveredPositions, Standing, StreamPartition
from gapconn.protocol.reassembler import Ahead, Settled
from gapconn.protocol.registry import LossCause
from gapconn.protocol.wire import Announcement


class SessionAccounts:
    """Makes of each message that is settled the events that tell of it, and of what is missing before it.

    Args:
        counters: Those of the receiver.
        events: Where the events are added.
        positions: How far each stream partition was delivered in an earlier life, if there was one.
    """

    def __init__(
        self,
        counters: ReceiverCounters,
        events: list[Event],
        positions: Mapping[StreamPartition, Standing] | None,
    ) -> None:
        self.epoch = 0
        """The session; 0 before the first."""
        self.announcement: Announcement | None = None
        """What the session said last of itself."""
        self.next_record = 0
        """Records of the session that are settled."""
        self._counters = counters
        self._events = events
        self._positions = DeliveredPositions(positions)
        self._joined_at = 0
        """Messages before it were sent before the egress joined the session, without stored state."""
        self._loss_cause = LossCause.GAP
        """Of the messages lost last."""

    def open(self, epoch: int, *, next_record: int, joined_at: int, known_from: int) -> None:
        """Begin with a session; the one before is over.

        Args:
            epoch: The session.
            next_record: The first of its records that is not settled.
            joined_at: The first of its messages that was sent after the egress joined it without stored state; else 0.
            known_from: The first of its messages of which it is known whether it was delivered (GC-DLV-11).
        """
        self.epoch = epoch
        self.announcement = None
        self.next_record = next_record
        self._joined_at = joined_at
        self._loss_cause = LossCause.GAP
        self._positions.follow(epoch, known_from=known_from)

    @property
    def records_known(self) -> int:
        """Records of the session that are known to have been sent."""
        return max(self.next_record, self.announcement.records_sent if self.announcement else 0)

    def learn(self, announcement: Announcement) -> None:
        """The session says this of itself; one that was overtaken by a later one says nothing new."""
        before = self.announcement
        if before is None or announcement.messages_sent >= before.messages_sent:
            self.announcement = announcement

    def enter(self, settled: Iterable[Settled]) -> None:
        """These messages are settled, in this order."""
        for item in settled:
            if item.delivered is not None:
                self._settle_delivered(item.delivered)
            elif item.message is None:
                cause = item.cause or LossCause.GAP
                self._loss_cause = cause
                self.lose_messages(self.epoch, item.first, item.last, cause)
            else:
                self._deliver(item)

    def enter_announced(self, settled_below: int) -> None:
        """The messages before that one are settled: those that the announcement counts tell of their records."""
        said = self.announcement
        if said is not None and said.messages_sent <= settled_below:
            self._enter_sent(said.records_sent)

    def lose_messages(self, epoch: int, first: int, last: int, cause: LossCause) -> None:
        """These messages of a session are lost, `last` included."""
        self._counters.messages_lost[cause] += last - first + 1
        self._events.append(MessagesLost(epoch=epoch, first=first, last=last, cause=cause))

    def lose_records(self, epoch: int, first: int, stop: int, cause: LossCause) -> None:
        """The records of a session from `first` on, before `stop`, are lost, if there are any."""
        if stop > first:
            self._counters.records_lost += stop - first
            self._events.append(RecordsLost(epoch=epoch, first=first, count=stop - first, cause=cause))

    def _deliver(self, item: Settled) -> None:
        message = item.message
        assert message is not None
        if item.ahead:
            already = self._positions.delivered_before(message.runs)
        else:
            already = self._settle(item.first, message.first_record, message.record_count, message.runs, late=item.late)
        self._counters.messages += 1
        self._counters.records += message.record_count
        self._counters.body_bytes += len(message.body)
        self._counters.plain_body_bytes += message.plain_bytes or len(message.body)
        if item.rebuilt:
            self._counters.messages_rebuilt += 1
            self._counters.symbols_rebuilt += item.rebuilt
        if item.late:
            self._counters.messages_late += 1
            self._counters.records_late += message.record_count
        self._events.append(
            MessageDelivered(
                epoch=self.epoch,
                number=item.first,
                first_record=message.first_record,
                record_count=message.record_count,
                runs=message.runs,
                already_delivered=already,
                positions={} if item.ahead else self._positions.of(message.runs),
                body=message.body,
                compression=message.compression,
                plain_bytes=message.plain_bytes,
                spans=tuple(message.spans),
                copies=tuple(message.copies),
                copied=message.copied,
                late=item.late,
                ahead=item.ahead,
                overtaken=item.overtaken,
            )
        )

    def _settle_delivered(self, ahead: Ahead) -> None:
        """What was delivered ahead has its turn: now it is known what is missing before it."""
        self._settle(ahead.number, ahead.first_record, ahead.record_count, ahead.runs, late=False)
        self._events.append(
            MessageSettled(
                epoch=self.epoch,
                number=ahead.number,
                next_record=self.next_record,
                positions=self._positions.of(ahead.runs),
            )
        )

    def _settle(
        self, number: int, first_record: int, record_count: int, runs: Sequence[Run], *, late: bool
    ) -> dict[StreamPartition, int]:
        """Account for a message that has its turn, or comes late: report what is missing before it.

        Returns:
            What was delivered before, as `MessageDelivered.already_delivered`.
        """
        # Of two things that were said of the records before, the earlier counts first; true ones agree.
        self.enter_announced(number)
        self._enter_sent(first_record)
        next_record = first_record + record_count
        self.next_record = max(self.next_record, next_record) if late else next_record
        missing, already = (self._positions.settle_late if late else self._positions.settle)(number, runs)
        for (stream, partition), first, last in missing:
            self._counters.records_missing_ranges += 1
            self._events.append(
                RecordsMissing(epoch=self.epoch, stream=stream, partition=partition, first=first, last=last)
            )
        if number < self._joined_at:
            return {}  # nothing of it was reported as missing, and nothing of it was delivered
        return already

    def _enter_sent(self, sent: int) -> None:
        """So many records were sent up to here; those that were not seen are lost (GC-DLV-13)."""
        self.lose_records(self.epoch, self.next_record, sent, self._loss_cause)
        self.next_record = max(self.next_record, sent)
