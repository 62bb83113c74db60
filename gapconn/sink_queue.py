"""What waits for the sink, in order: in memory, and when that is not enough, on disk.

    reassembler ──offer──▶ head ───────────────────────▶ sink ──accept──▶ progress
                     │      ▲ reader                       ▲
                     └▶ tail ──writer──▶ spool (disk) ─────┘ after a restart

As long as the sink keeps up, a message goes from `offer` through the head to the sink, and the disk is not touched.
Two things bring messages to the disk (GC-DLV-19 to 22):

- the head is full: what comes then waits in the tail until the writer has put it on disk, is forgotten here, and is
  read back when the head has room;
- the sink has not accepted a message for a while (`after_s`): it, and all behind it, is written, and stays in memory
  as well. So whatever the sink has not accepted in that time survives the end of this process.

A message is written at most once, and never before one that came earlier and that the sink has not accepted: what is in
the spool is all that is owed to the sink up to its last entry. That is why an entry that is on disk counts as settled
for the resume point, and why a restart goes on with the spool first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain

import attrs
import trio

from gapconn.errors import RemoteProtocolError
from gapconn.events_log import EventLog
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import MESSAGE_BYTES_MAX, LossCause
from gapconn.ranges import Range
from gapconn.record import Batch
from gapconn.sinks import Delivery, Reached
from gapconn.store.database import StateStuckError
from gapconn.store.spool import Appended, Damage, Place, Spool, Spooled, Trouble
from gapconn.unpacking import Unpacker

WAITING_OVERHEAD_BYTES = 1024
"""What a message that waits for the sink takes beside its body."""
SYNC_INTERVAL_S = 0.1
"""How long what has to be written is gathered at most, before it is written and synced at once."""
SYNC_BYTES = 8 << 20
"""So much is written without waiting for more."""
APPEND_BYTES_MAX = 8 << 20
"""Written and synced at once, at most (a single message may be more)."""
READ_BYTES = 4 << 20
RETRY_S = 0.5
"""Between tries to write to a disk that does not take it."""
CALM_S = 5.0
"""An alarm clears when the disk has refused nothing for so long: a full spool has room for a moment now and then."""
FILLING_SHARE = 0.8
FILLING_OVER_SHARE = 0.7
"""The alarm clears below this."""


@attrs.define(eq=False)
class _Waiting:
    """A message, from its arrival until the sink has accepted it."""

    lost_before: int
    size_bytes: int
    arrived_s: float
    """Wall-clock time."""
    held_since_s: float
    message: MessageDelivered | None
    """None when it is not needed here any more, or if it was damaged on disk."""
    mends: MessageDelivered | None = None
    """If it brings what was lost: the message without its body."""
    settle: Callable[[], None] | None = None
    """Tells the progress that it is safe; None when it is told."""
    end: Place | None = None
    """Where it ends in the spool; None if it is not there."""
    retained: bool = False
    """The sink has it, and it is kept here until it is accepted or on disk."""
    accepted: bool = False
    passed: bool = False
    """It and all before it are accepted."""


class SinkQueue:
    """What waits for the sink: in order, bounded in bytes (gapconn.sinks.Inlet).

    Messages wait as they came: decoded, small records take several times their size, and compressed bodies may be
    enormous when inflated (GC-COMP-4).

    Args:
        bytes_max: What may wait in memory.
        events: Where refusals, duplicates and alarms are told.
        spool: The disk; None to do without.
        head_bytes_max: What may wait in memory before messages go through the disk.
        after_s: What was not accepted for so long is written to disk.
        message_bytes_max: What the body of a message may inflate to.
        note_losses: Awaited before messages are written to disk: stores what was lost before them (GC-RPR-1). Raises
            `StateStuckError` if it cannot be stored now.
        missed: Told the epoch and the number of a message that is lost here and whole where it came from: it is to be
            taken again when it is repeated (GC-DLV-40).
        delivered: Epoch and number of the first message that the sink's target does not have, as the target says: what
            is in the spool before it is not handed out (GC-ONCE-3).

    Attributes:
        bytes: Memory of what waits and was not handed to the sink.
        accepted: Messages that the sink has for good.
        unaccepted: Messages that it does not have yet, those on disk included.
        origin: Where the records come from that were handed out last, such as the id of a Kafka cluster.
        waits_to_note: How often the sink waited for losses that could not be stored.
    """

    def __init__(
        self,
        bytes_max: int,
        events: EventLog,
        spool: Spool | None = None,
        *,
        head_bytes_max: int | None = None,
        after_s: float = 1.0,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        note_losses: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        missed: Callable[[int, int], None] = lambda epoch, number: None,
        delivered: tuple[int, int] = (0, 0),
    ) -> None:
        self.bytes_max = bytes_max
        self._unpacker = Unpacker(events, message_bytes_max)
        self._note_losses = note_losses
        self._missed = missed
        self.waits_to_note = 0
        self._delivered = delivered
        self.events = events
        self.spool = spool
        self.bytes = 0
        self.accepted = 0
        self.unaccepted = 0
        self.origin = ""
        self._head_bytes_max = bytes_max if head_bytes_max is None or spool is None else head_bytes_max
        self._after_s = after_s
        self._handed: deque[_Waiting] = deque()
        """Given to the sink, and not passed yet. Only kept with a spool."""
        self._head: deque[_Waiting] = deque()
        self._tail: deque[_Waiting] = deque()
        """Waits behind what is on disk, and to be written there."""
        self._head_bytes = 0
        self._tail_bytes = 0
        self._retained_bytes = 0
        """Of messages that the sink has, and that are kept until it accepts them or they are written."""
        self._cursor = self._read_to = self._end = Place(0, 0, 0)
        """Of the spool: before it everything is accepted; where to read on; the end."""
        if spool is not None:
            self._cursor = self._read_to = spool.cursor
            self._end = spool.end
            self.unaccepted = self.spooled
        self._head_epoch = 0
        """Of the last message in order that came into the head."""
        self._being_written = 0
        self._tail_being_written = 0
        self._trouble: Appended | None = None
        """Why the disk did not take something."""
        self._troubled_at_s = 0.0
        self._lost_before = 0
        self._closed = False
        self._hand_out_until_s = float("inf")
        self._working = trio.CancelScope()
        self._changed = trio.lowlevel.ParkingLot()
        """Where tasks of the sink wait for messages."""
        self._to_write = trio.lowlevel.ParkingLot()
        self._to_read = trio.lowlevel.ParkingLot()
        self._writer_idle = False

    # -- What comes in ---------------------------------------------------------------------------------------

    def offer(self, message: MessageDelivered, settle: Callable[[], None], lost_before: int) -> bool:
        """Take `message`, unless there is no room for it; a single one always has room.

        Args:
            message: The next in order.
            settle: Called once it is safe: accepted by the sink, or on disk. May be called twice.
            lost_before: Messages lost directly before it.
        """
        size_bytes = len(message.body) + WAITING_OVERHEAD_BYTES
        if self.bytes and self.bytes + size_bytes > self.bytes_max:
            return False
        now_s = trio.current_time()
        waiting = _Waiting(lost_before, size_bytes, time.time(), now_s, message, _mending(message), settle)
        self.bytes += size_bytes
        self.unaccepted += 1
        has_room = not self._head or self._head_bytes + size_bytes <= self._head_bytes_max
        if has_room and not self._tail and not self._unread:
            self._head.append(waiting)
            self._head_bytes += size_bytes
            self._note_epoch(message)
            self._changed.unpark_all()
        else:
            self._tail.append(waiting)
            self._tail_bytes += size_bytes
        if self._writer_idle or self._tail_bytes >= SYNC_BYTES or len(self._tail) == 1:
            self._to_write.unpark_all()
        return True

    @property
    def refusal(self) -> str:
        """Why there is no room, for the operator."""
        if self._trouble is not None and self._trouble.trouble is not None:
            return f"the sink is slow, and the spool takes no more: {self.trouble}"
        if self.spool is not None:
            return "the sink is slow, and the spool's disk is slower than the link"
        return "the sink is slow, and link.sink_buffer_bytes are held for it"

    def close(self, hand_out_until_s: float = float("inf")) -> None:
        """No more messages come: the sink's loop ends behind those that wait.

        Args:
            hand_out_until_s: With a spool the loop ends then, whatever still waits: it is kept for the next start.
        """
        self._closed = True
        if self.spool is not None:
            self._hand_out_until_s = hand_out_until_s
        self._changed.unpark_all()

    # -- What the sink takes ---------------------------------------------------------------------------------

    @property
    def _unread(self) -> int:
        """Entries on disk that are not in memory."""
        return self._end.serial - self._read_to.serial

    @property
    def drained(self) -> bool:
        """Whether it is closed and gives nothing out any more."""
        return self._closed and (
            not (self._head or self._tail or self._unread)
            or (self._trouble is None and trio.current_time() >= self._hand_out_until_s)
        )

    def __len__(self) -> int:
        """Messages that wait in memory."""
        return len(self._head) + len(self._tail)

    def __aiter__(self) -> AsyncIterator[Delivery]:
        # Not an async generator: a sink may leave its loop at any time, and those must be closed.
        return self

    async def __anext__(self) -> Delivery:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.drained:
                raise StopAsyncIteration
            self._advance_tail()
            # What a sink does not accept is kept here until it is on disk, so it must be bounded as well.
            if not self._head or (self._retained_bytes and self._retained_bytes >= self.bytes_max):
                await self._changed.park()
                continue
            waiting = self._head[0]
            opened = await self._unpacker.open(waiting.message) if waiting.message is not None else None
            if not self._head or self._head[0] is not waiting:
                continue  # another task of the sink has taken it meanwhile
            self._head.popleft()  # only now: a sink that gives up waiting must not lose it
            self._head_bytes -= waiting.size_bytes
            self.bytes -= waiting.size_bytes
            if self._unread:
                self._to_read.unpark_all()
            delivery = self._hand_out(waiting, opened)
            if delivery is not None:
                return delivery

    def _advance_tail(self) -> None:
        """When nothing is between head and tail, what waits in the tail need not go through the disk."""
        if self._tail and not self._head and not self._unread and not self._tail_being_written:
            self._head, self._tail = self._tail, self._head
            self._head_bytes, self._tail_bytes = self._tail_bytes, 0
            for waiting in self._head:
                self._note_epoch(waiting.message)

    def _note_epoch(self, message: MessageDelivered | None) -> None:
        if message is not None and not message.late:
            self._head_epoch = message.epoch

    def _hand_out(self, waiting: _Waiting, opened: Batch | RemoteProtocolError | None) -> Delivery | None:
        """Make a delivery of it; None if there is nothing in it for the sink."""
        if self.spool is not None:
            self._handed.append(waiting)
            if waiting.end is None:
                waiting.retained = True
                self._retained_bytes += waiting.size_bytes
        self._lost_before += waiting.lost_before
        message = waiting.message
        if message is None or opened is None:  # damaged on disk, and told; or with the target
            self._done_with(waiting)
            return None
        accept = partial(self._accept, waiting, message.epoch, message.number, message.claimed)
        if waiting.end is not None:
            waiting.message = None  # it is on disk
        if isinstance(opened, RemoteProtocolError):
            # It was so when it was sent, and a repeat of it would be.
            self.events.message_refused(message, LossCause.DAMAGED, str(opened))
            self._lost_before += not message.late
            self._done_with(waiting)  # not accepted: it is lost, and did not come late
            return None
        self.origin = opened.origin or self.origin
        batch = self._unpacker.to_deliver(opened, message)
        if not batch.parts:  # all of it was delivered before
            accept()
            return None
        lost_before = 0
        if not message.late:
            lost_before, self._lost_before = self._lost_before, 0
        progress = Progress(
            epoch=message.epoch,
            next_message=0 if message.late else message.number + 1,
            next_record=message.first_record + message.record_count,
            positions=message.positions,
        )
        return Delivery(
            epoch=message.epoch,
            message=message.number,
            lost_before=lost_before,
            batch=batch,
            repair=bool(message.spans),
            late=message.late or message.overtaken,
            reached=Reached(
                progress=progress,
                repaired=message.claimed,
                late=((message.epoch, message.number),) if message.late else (),
            ),
            accept=accept,
            # A message is kept in memory by this, so it is only there for those that can be declined.
            decline=partial(self._decline, waiting, message) if message.late or message.overtaken else accept,
        )

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        """The sink reports what will never reach the target."""
        self.events.sink_lost(stream=stream, partition=partition, first=first, last=last, reason=reason)

    def found(self, *, stream: str, first: int, last: int) -> None:
        """The sink reports what is in the target after all."""
        self.events.sink_found(stream=stream, first=first, last=last)

    async def note_losses(self) -> None:
        """Store what is missing, and what is missing no more (GC-RPR-1); waits until that can be done."""
        while True:
            try:
                await self._note_losses()
            except StateStuckError:
                self.waits_to_note += 1
                await trio.sleep(RETRY_S)
            else:
                return

    def _accept(
        self, waiting: _Waiting, epoch: int, number: int, claimed: Mapping[tuple[str, int], tuple[Range, ...]]
    ) -> None:
        if waiting.accepted:
            return
        # Only now, not when it is on disk: what is damaged there is still missing (GC-RPR-7).
        self.events.accepted(epoch, number, claimed)
        self._done_with(waiting)

    def _decline(self, waiting: _Waiting, message: MessageDelivered) -> None:
        """The sink can do nothing with a late message: what is in it stays lost."""
        if not waiting.accepted:
            if message.late:
                self.events.late_declined(message)
            else:
                self.events.message_refused(message, LossCause.REFUSED, "the sink cannot use what comes out of order")
            self._done_with(waiting)

    def _done_with(self, waiting: _Waiting) -> None:
        waiting.accepted = True
        self.accepted += 1
        self.unaccepted -= 1
        self._settle(waiting)
        self._release(waiting)
        while self._handed and self._handed[0].accepted:
            passed = self._handed.popleft()
            passed.passed = True
            if passed.end is not None:
                self._cursor = passed.end

    def _settle(self, waiting: _Waiting) -> None:
        settle, waiting.settle = waiting.settle, None
        if settle is not None:
            settle()

    def _release(self, waiting: _Waiting) -> None:
        """If it is only kept for the disk: it need not be any more."""
        if waiting.retained:
            waiting.retained = False
            waiting.message = None
            self._retained_bytes -= waiting.size_bytes
            self._changed.unpark_all()

    # -- The disk --------------------------------------------------------------------------------------------

    @property
    def spooled(self) -> int:
        """Messages on disk that the sink has not accepted."""
        return self._end.serial - self._cursor.serial

    @property
    def oldest_age_s(self) -> float:
        """How long ago the oldest message came that the sink has not accepted; 0 if there is none."""
        first = next((w for w in chain(self._handed, self._head, self._tail) if not w.accepted), None)
        return max(0.0, time.time() - first.arrived_s) if first is not None else 0.0

    @property
    def trouble(self) -> str:
        """Why nothing can be written to disk now; empty if it can."""
        if self._trouble is None or self._trouble.trouble is None:
            return ""
        return f"{self._trouble.trouble.value} {self._trouble.error}".strip()

    async def work(self) -> None:
        """Move messages to the disk and back, until `finish`."""
        if self.spool is not None:
            with self._working:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._writer, name="egress.spool_writer")
                    nursery.start_soon(self._reader, name="egress.spool_reader")

    async def _writer(self) -> None:
        while True:
            await self._until_due()
            if not await self._write():
                await trio.sleep(RETRY_S)

    async def _until_due(self) -> None:
        while (due_s := self._due_s()) > trio.current_time():
            self._writer_idle = due_s == float("inf")
            with trio.move_on_at(due_s):
                await self._to_write.park()
            self._writer_idle = False

    def _due_s(self) -> float:
        if self._tail_bytes >= SYNC_BYTES:
            return 0.0
        tail_s = self._tail[0].held_since_s + SYNC_INTERVAL_S if self._tail else float("inf")
        oldest = next(self._unwritten(), None)
        return min(tail_s, oldest.held_since_s + self._after_s if oldest is not None else float("inf"))

    def _unwritten(self) -> chain[_Waiting]:
        """What the sink has not accepted, and is not on disk, in order."""
        return chain(
            (waiting for waiting in self._handed if waiting.end is None and not waiting.accepted),
            (waiting for waiting in self._head if waiting.end is None),
            self._tail,
        )

    async def _write(self) -> bool:
        """Write what is not on disk, as much as is good at once; whether it could be written."""
        assert self.spool is not None
        batch: list[_Waiting] = []
        size_bytes = 0
        for waiting in self._unwritten():
            size_bytes += waiting.size_bytes
            if batch and size_bytes > APPEND_BYTES_MAX:
                break
            batch.append(waiting)
        if not batch:
            return True
        tail = self._tail[0] if self._tail else None
        in_tail = len(batch) - batch.index(tail) if tail in batch else 0
        entries = [
            Spooled(message=waiting.message, lost_before=waiting.lost_before, arrived_s=waiting.arrived_s)
            for waiting in batch
            if waiting.message is not None
        ]
        self._being_written, self._tail_being_written = len(batch), in_tail
        try:
            await self._note_losses()
            appended = await trio.to_thread.run_sync(self.spool.append, entries)
        except StateStuckError as error:
            appended = Appended(ends=[], trouble=Trouble.UNNOTED, error=str(error))
        self._being_written = self._tail_being_written = 0
        self._written(batch, len(batch) - in_tail, appended)
        return appended.trouble is None

    def _written(self, batch: list[_Waiting], before_tail: int, appended: Appended) -> None:
        for index, (waiting, end) in enumerate(zip(batch, appended.ends, strict=False)):
            waiting.end = self._end = end
            self._settle(waiting)
            if index >= before_tail:
                assert self._tail[0] is waiting
                self._tail.popleft()
                self._tail_bytes -= waiting.size_bytes
                self.bytes -= waiting.size_bytes
                continue
            self._read_to = end  # it is in memory too
            if waiting.passed:
                self._cursor = end
            self._release(waiting)
        if appended.trouble is not None:
            if self._trouble is None or self._trouble.trouble is not appended.trouble:
                self.events.spool_stuck(_ALARMS[appended.trouble], f"{appended.trouble.value} {appended.error}".strip())
            self._trouble = appended
            self._troubled_at_s = trio.current_time()
        self._changed.unpark_all()
        self._to_read.unpark_all()

    async def _reader(self) -> None:
        """Read back what is on disk when there is room for it in memory."""
        assert self.spool is not None
        while True:
            if not self._unread or self._head_bytes > self._head_bytes_max // 2:
                await self._to_read.park()
                continue
            try:
                read = await trio.to_thread.run_sync(
                    self.spool.read, self._read_to, min(READ_BYTES, self._head_bytes_max)
                )
                if any(isinstance(item, Damage) and item.known is None for item, _ in read.items):
                    await self._let_go()
            except OSError as error:
                self.events.spool_not_read(str(error))
                await trio.sleep(RETRY_S)
                continue
            for index, (item, end) in enumerate(read.items):
                self._take_read(item, end, read.items[index + 1 :] if isinstance(item, Damage) else ())
            self._read_to = read.place
            self._changed.unpark_all()

    async def _let_go(self) -> None:
        """Something of the spool is gone, and nobody knows what: of what is on its way to the sink, that is given up
        which is nowhere any more.

        Raises:
            OSError: the spool cannot be read now.
        """
        assert self.spool is not None
        nowhere = self.events.journal.on_its_way()
        for waiting in chain(self._handed, self._head, self._tail):
            if waiting.mends is not None and not waiting.accepted:
                nowhere.leave_out(waiting.mends)
        spool = self.spool

        def leave_out_spooled() -> None:
            for message in spool.described_mending():
                nowhere.leave_out(message)

        await trio.to_thread.run_sync(leave_out_spooled)
        self.events.journal.let_go(nowhere)
        for epoch, numbers in nowhere.messages.items():
            for first, last in numbers:
                for number in range(first, last + 1):
                    self._missed(epoch, number)

    def _take_read(self, item: Spooled | Damage, end: Place, behind: Sequence[tuple[Spooled | Damage, Place]]) -> None:
        now_s = trio.current_time()
        if isinstance(item, Spooled) and self._target_has(item.message):
            # What the target has of a repair is in the journal; what it can never take may be asked for again.
            self.events.journal.release(item.message)
            waiting = _Waiting(0, WAITING_OVERHEAD_BYTES, item.arrived_s, now_s, None, end=end)
        elif isinstance(item, Spooled):
            size_bytes = len(item.message.body) + WAITING_OVERHEAD_BYTES
            message = item.message
            waiting = _Waiting(item.lost_before, size_bytes, item.arrived_s, now_s, message, _mending(message), end=end)
            self.events.repair_waits(message)
            self._note_epoch(message)
        else:
            lost = self._take_damage(item, behind)
            waiting = _Waiting(lost, WAITING_OVERHEAD_BYTES, time.time(), now_s, None, end=end)
            self.unaccepted -= item.serials - 1
        self._head.append(waiting)
        self._head_bytes += waiting.size_bytes
        self.bytes += waiting.size_bytes

    def _take_damage(self, damage: Damage, behind: Sequence[tuple[Spooled | Damage, Place]]) -> int:
        """Tell of damage; how many messages are lost before the next one."""
        if damage.known is None:
            whole = (item.message for item, _ in behind if isinstance(item, Spooled) and not item.message.late)
            following = next(whole, None)
            same = following is not None and following.epoch == self._head_epoch
            self.events.spool_damaged(damage, self._head_epoch if same else 0)
            return damage.serials
        message = damage.known.message
        if self._target_has(message):
            self.events.journal.release(message)
            return 0
        self.events.spool_damaged(damage)
        self._missed(message.epoch, message.number)
        return damage.known.lost_before + (not message.late)

    def _target_has(self, message: MessageDelivered) -> bool:
        """Whether the target itself says that it has it, which only some can (GC-ONCE-3)."""
        if message.late:
            return self._delivered > (0, 0) and self.events.journal.has_come_late(message.epoch, message.number)
        return (message.epoch, message.number) < self._delivered

    @property
    def cursor(self) -> Place:
        """Of the spool: before it the sink has everything, or it was told that it is lost."""
        return self._cursor

    @property
    def committable(self) -> bool:
        """Whether `commit` has something to do."""
        if self.spool is None:
            return False
        moved = self._cursor.serial != self.spool.cursor.serial
        return moved or (not self.spooled and self.spool.disk_bytes > 0)

    def commit(self, cursor: Place | None = None) -> None:
        """Note on disk how far the sink has come, and give space free. Blocks for the disk; for another thread.

        Args:
            cursor: As it was some time ago.

        Raises:
            OSError: it cannot be noted now; trying again may help.
        """
        if self.spool is not None and self.committable:
            self.spool.commit(self._cursor if cursor is None else cursor)

    @property
    def disk_bytes(self) -> int:
        """What the spool takes on disk."""
        return self.spool.disk_bytes if self.spool is not None else 0

    def watch(self) -> None:
        """Raise and clear the alarms of the spool."""
        if self._trouble is not None and trio.current_time() - self._troubled_at_s > CALM_S:
            self._trouble = None
            self.events.spool_goes_on()
        if self.spool is not None:
            share = self.disk_bytes / self.spool.max_bytes
            self.events.spool_share(
                share, filling=share >= FILLING_SHARE, over=share < FILLING_OVER_SHARE, messages=self.spooled
            )

    async def keep(self) -> int:
        """Write all that the sink has not accepted; how many messages could not be written.

        For the end, when the sink and the other tasks are over.
        """
        if self.spool is not None:
            while next(self._unwritten(), None) is not None and await self._write():
                pass
        return sum(1 for _ in self._unwritten())

    def finish(self) -> None:
        """End `work`: the sink takes no more."""
        self._working.cancel()


def _mending(message: MessageDelivered) -> MessageDelivered | None:
    return attrs.evolve(message, body=memoryview(b"")) if message.late or message.claimed else None


_ALARMS = {
    Trouble.FULL: "spool_full",
    Trouble.NO_SPACE: "spool_disk_full",
    Trouble.FAILED: "spool_failed",
    Trouble.UNNOTED: "spool_failed",
}
