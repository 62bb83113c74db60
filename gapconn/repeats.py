"""Sending messages again from the repeat buffer: what is kept, and what is due when.

    fragmenter ──messages──▶ (bounded memory) ──keeper──▶ disk ──▶ a reader for each delay ──▶ repeater ══ gap

Keeping never slows the sending down: what the disk does not take in time is not kept, and counted.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio
from structlog.typing import FilteringBoundLogger

from gapconn.config import Link
from gapconn.store.repeat_buffer import NOTHING_NEEDED, Kept, RepeatBuffer, Sent, Stored
from gapconn.throttle import ThrottledLog

WRITE_INTERVAL_S: Final = 0.05
"""How often what was sent goes to disk, unless there is much of it."""
WRITE_BYTES: Final = 1 << 20
PENDING_BYTES_MAX: Final = 32 << 20
"""What may wait for the disk; or twice the longest message, if that is more."""
READ_BYTES: Final = 1 << 20
"""What each delay holds in memory, or one message."""
LOOK_INTERVAL_S: Final = 0.02
"""How often at the most it is looked for more to repeat, where nothing was found."""
NOTE_INTERVAL_S: Final = 1.0
"""How often it is noted on disk how far the repeats are: after a kill so much counts as not repeated that was."""
ALARM_S: Final = 60.0
"""How long an alarm stands behind its last cause."""
IDLE_DELAY_S: Final = 1.0
"""Of the extra pass of a link that repeats only when it is idle."""
IDLE_SHARE: Final = 0.1
"""Of a delay: an idle link repeats sooner, but so long an outage must not hit both times."""


@attrs.frozen(kw_only=True)
class Delay:
    """When messages are sent again, after the first time."""

    nominal_s: float
    """From when on a repeat is late."""
    earliest_s: float
    """From when on it is sent, as soon as the link has nothing else to do."""
    promised: bool = True
    """Whether it matters if a message is dropped before."""


def delays_of(link: Link) -> list[Delay]:
    """The delays that are configured."""
    share = IDLE_SHARE if link.repair_when_idle else 1.0
    delays = [Delay(nominal_s=delay_s, earliest_s=share * delay_s) for delay_s in link.repeat_s]
    if link.repair_when_idle and not delays:
        delays.append(Delay(nominal_s=IDLE_DELAY_S, earliest_s=IDLE_DELAY_S, promised=False))
    return delays


@attrs.define(kw_only=True)
class RepeatCounters:
    """Messages. Plain numbers; they only grow."""

    kept: int = 0
    not_kept: int = 0
    """Not repeatable: the disk was too slow, full, or failed."""
    dropped: int = 0
    """Dropped from the buffer before they were repeated as often as they should be."""


@attrs.define(eq=False)
class Wish:
    """A message that somebody wants sent again now."""

    number: int
    message: memoryview
    sent: trio.Event = attrs.field(factory=trio.Event)
    """Set when the network has all of it."""


class _Reader:
    """Goes through the buffer at the distance of one delay."""

    def __init__(self, delay: Delay, buffer: RepeatBuffer, epoch: int) -> None:
        self.delay = delay
        self._buffer = buffer
        self._epoch = epoch
        self._place = buffer.end
        self._held: deque[Kept] = deque()
        self._look_at_s = trio.current_time() + delay.earliest_s

    @property
    def next_serial(self) -> int:
        """Of the first message in the buffer that was not taken."""
        return self._held[0].serial if self._held else self._place.serial

    @property
    def due_at_s(self) -> float:
        """When it has to be asked again: when the next message is due, or when there may be one."""
        return self._held[0].sent.clock_s + self.delay.earliest_s if self._held else self._look_at_s

    def late_s(self, now_s: float) -> float:
        """By how much the next message is late."""
        return max(0.0, now_s - self._held[0].sent.clock_s - self.delay.nominal_s) if self._held else 0.0

    async def next(self) -> Kept | None:
        """The next message if one is due."""
        now_s = trio.current_time()
        if not self._held and now_s >= self._look_at_s:
            found, self._place = await trio.to_thread.run_sync(self._buffer.read, self._place, READ_BYTES)
            self._held.extend(kept for kept in found if kept.sent.epoch == self._epoch)
            if not found:
                # Whatever comes into the buffer from now on was sent at most one write interval ago.
                self._look_at_s = now_s + max(self.delay.earliest_s - 2 * WRITE_INTERVAL_S, LOOK_INTERVAL_S)
        if self._held and self.due_at_s <= now_s:
            return self._held.popleft()
        return None


class Repeats:
    """What an ingress keeps of the messages of its session, and sends again.

    Args:
        buffer: On disk.
        link: Its delays and limits.
        epoch: Of the session.
        log: For what is kept and dropped.
    """

    def __init__(self, buffer: RepeatBuffer, link: Link, *, epoch: int, log: FilteringBoundLogger) -> None:
        self.buffer = buffer
        self.counters = RepeatCounters()
        self.epoch = epoch
        self._log = log
        self._throttled = ThrottledLog(log)
        self._pending: list[tuple[Sent, bytes]] = []
        self._pending_bytes = 0
        self._writing_bytes = 0
        self._pending_bytes_max = max(PENDING_BYTES_MAX, 2 * link.message_bytes_max)
        self._some, self._much = trio.Event(), trio.Event()
        """There is something, and there is much, to write."""
        self._closing = False
        self._wishes: deque[Wish] = deque()
        self._wished = trio.Event()
        self._noted: int | None = None
        self._note_at_s = -math.inf
        self._dropped_at_s = self._not_kept_at_s = -ALARM_S
        self._trouble = ""
        self._readers = [_Reader(delay, buffer, epoch) for delay in delays_of(link)]

    # -- keeping ---------------------------------------------------------------------------------------------

    def keep(self, number: int, message: bytearray) -> None:
        """Keep a message that is being sent, if there is room; never waits."""
        size = len(message)
        if self._pending_bytes + self._writing_bytes + size > self._pending_bytes_max:
            self._not_kept(1, "its disk is too slow")
        elif size > self.buffer.max_bytes // 2:
            self._not_kept(1, "repeat_buffer.max_bytes is less than two messages")
        else:
            self._pending.append((Sent(self.epoch, number, time.time(), trio.current_time()), bytes(message)))
            self._pending_bytes += size
            self._some.set()
            if self._pending_bytes >= WRITE_BYTES:
                self._much.set()

    async def keeper(self) -> None:
        """Write what is to be kept to disk, until `close`."""
        left = self.buffer.left_before  # of an earlier session, whose numbers mean nothing in this one
        if left:
            self._log.warning("repeats_ended", messages_at_most=left, kept_for="gapconn resend")
        await self._note_needed()
        while not self._closing or self._pending:
            await self._some.wait()
            with trio.move_on_after(WRITE_INTERVAL_S):
                await self._much.wait()
            await self._write()
        await self._note_needed()

    async def _note_needed(self) -> None:
        """Have the next session know what this one had still to repeat."""
        needed_from = self._needed_from
        self._note_at_s = trio.current_time() + NOTE_INTERVAL_S
        with suppress(OSError):  # it is tried again, and what was noted before says more than is true
            await trio.to_thread.run_sync(self.buffer.note_needed, needed_from)
            self._noted = needed_from

    async def _write(self) -> None:
        messages, self._pending = self._pending, []
        self._writing_bytes, self._pending_bytes = self._pending_bytes, 0
        if not self._closing:
            self._some, self._much = trio.Event(), trio.Event()
        if messages:
            needed_from = self._needed_from
            stored = await trio.to_thread.run_sync(lambda: self.buffer.append(messages, needed_from=needed_from))
            self._take_account(stored, len(messages))
        self._writing_bytes = 0

    def close(self) -> None:
        """Nothing more is to be kept: the keeper ends when it has written what is there."""
        self._closing = True
        self._some.set()
        self._much.set()

    @property
    def _needed_from(self) -> int:
        promised = (reader.next_serial for reader in self._readers if reader.delay.promised)
        return min(promised, default=NOTHING_NEEDED)

    def _take_account(self, stored: Stored, given: int) -> None:
        self.counters.kept += stored.kept
        if stored.kept < given:
            self._not_kept(given - stored.kept, stored.error)
        if stored.dropped_needed:
            self.counters.dropped += stored.dropped_needed
            self._dropped_at_s = trio.current_time()
            self._throttled.warning(
                "repeats_dropped", messages=stored.dropped_needed, in_all=self.counters.dropped, late_s=self.late_s
            )

    def _not_kept(self, count: int, why: str) -> None:
        self.counters.not_kept += count
        self._not_kept_at_s = trio.current_time()
        self._trouble = why
        self._throttled.warning("not_repeatable", messages=count, in_all=self.counters.not_kept, why=why)

    # -- sending again ---------------------------------------------------------------------------------------

    async def next(self) -> Kept | Wish:
        """What is to be sent again now; waits until there is something."""
        while True:
            if self._wishes:
                return self._wishes.popleft()
            if self._noted != self._needed_from and trio.current_time() >= self._note_at_s:
                await self._note_needed()
            for reader in sorted(self._readers, key=lambda each: each.due_at_s):
                try:
                    kept = await reader.next()
                except OSError as error:
                    self._throttled.warning("repeat_buffer_unreadable", error=str(error))
                    await trio.sleep(1.0)
                    continue
                if kept is not None:
                    return kept
            if self._wishes:  # it came while the disk was read
                continue
            self._wished = trio.Event()
            due_s = [reader.due_at_s for reader in self._readers]
            if self._noted != self._needed_from:
                due_s.append(self._note_at_s)
            with trio.move_on_at(min(due_s, default=math.inf)):
                await self._wished.wait()

    async def send_again(self, number: int, message: memoryview) -> None:
        """Have a message of this session sent again soon; returns when the network has it."""
        wish = Wish(number, message)
        self._wishes.append(wish)
        self._wished.set()
        await wish.sent.wait()

    # -- what can be asked -----------------------------------------------------------------------------------

    @property
    def late_s(self) -> float:
        """By how much the repeats are late, in seconds."""
        now_s = trio.current_time()
        return round(max((reader.late_s(now_s) for reader in self._readers), default=0.0), 1)

    @property
    def left(self) -> int:
        """Messages of this session that were not repeated as often as they should be."""
        return max(0, self.buffer.end.serial - self._needed_from)

    @property
    def alarms(self) -> Sequence[str]:
        """What is wrong, a sentence each."""
        now_s = trio.current_time()
        alarms = []
        if now_s - self._dropped_at_s < ALARM_S:
            alarms.append(
                "repeats cannot keep up: messages were dropped from the repeat buffer before they were repeated"
            )
        if now_s - self._not_kept_at_s < ALARM_S:
            alarms.append(f"the repeat buffer does not take everything: {self._trouble}")
        return alarms
