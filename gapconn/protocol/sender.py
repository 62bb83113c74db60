"""The sending half of a link: messages and time in, bursts of datagrams out."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from gapconn.errors import LocalProtocolError
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES, Run, Span, begin_message, end_message
from gapconn.protocol.fragmenter import Fragmenter, cut_of
from gapconn.protocol.positions import SentPositions
from gapconn.protocol.registry import (
    ANNOUNCEMENT_BYTES,
    MESSAGE_BYTES_MAX,
    SHUTDOWN_COPIES,
    STARTUP_COPIES,
    DatagramType,
    MessageKind,
    Phase,
)
from gapconn.protocol.states import SenderEffect, SenderInput, SenderMachine, SenderState
from gapconn.protocol.wire import OVERHEAD_BYTES, ROWS_MAX, Announcement, Burst, Header, Slab, burst_of, encode_datagram


@attrs.frozen(kw_only=True)
class SenderSettings:
    """What an ingress is configured to do. The session's epochs come from its stored state (GC-SESS-1)."""

    link_id: int
    epoch: int
    previous_epoch: int = 0
    """Stored epoch of the session before; 0 without stored state."""
    heartbeat_interval_s: float = 1.0
    interruption_timeout_s: float = 3.0
    mtu_bytes: int = 1500
    ip_header_bytes: int = 28
    """IP and UDP headers: 28 for IPv4, 48 for IPv6."""
    message_bytes_max: int = 16 << 20
    burst_datagrams_max: int = ROWS_MAX
    """Fewer at a low rate, so that heartbeats find their way between bursts (GC-TIME-1)."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.previous_epoch < self.epoch < 2**64:
            raise LocalProtocolError(f"epoch {self.epoch} is not above the previous one, {self.previous_epoch}")
        if not 0 < self.heartbeat_interval_s <= self.interruption_timeout_s:
            raise LocalProtocolError("the interruption timeout is shorter than the heartbeat interval")
        if self.datagram_bytes_max <= OVERHEAD_BYTES + ANNOUNCEMENT_BYTES or self.mtu_bytes > 65_535:
            raise LocalProtocolError(f"an MTU of {self.mtu_bytes} bytes cannot be used or announced")
        if self.message_bytes_max > MESSAGE_BYTES_MAX:
            raise LocalProtocolError(f"a message limit of {self.message_bytes_max} bytes is too large")

    @property
    def datagram_bytes_max(self) -> int:
        """UDP payload that fits the MTU (GC-WIRE-6)."""
        return self.mtu_bytes - self.ip_header_bytes

    @property
    def symbol_bytes_max(self) -> int:
        """Payload of a Data datagram at the most."""
        return self.datagram_bytes_max - OVERHEAD_BYTES


@attrs.define(kw_only=True)
class SenderCounters:
    """What was built so far. Plain numbers; they only grow."""

    datagrams: int = 0
    bytes: int = 0
    """UDP payload bytes."""
    messages: int = 0
    records: int = 0
    records_filtered: int = 0
    heartbeats: int = 0


class LinkSender:
    """Builds everything that an ingress sends, in the order in which it must be sent.

    Bursts must go to the network in the order in which this class made them. Time is monotonic, in seconds.
    """

    def __init__(self, settings: SenderSettings) -> None:
        self.settings = settings
        self.counters = SenderCounters()
        self._machine = SenderMachine()
        self._sequence = 0
        self._positions = SentPositions()
        self._message = bytearray()
        self._fragmenter: Fragmenter | None = None
        self._record_count = 0
        self._next_heartbeat_s: float | None = None
        self._announced_at_s: float | None = None
        self._last_message_s = -math.inf
        self._now_s = -math.inf

    @property
    def state(self) -> SenderState:
        """Where the session is."""
        return self._machine.state

    def start(self, now_s: float) -> list[Burst]:
        """Begin the session: the StartUp datagrams (GC-SESS-2, GC-SESS-3)."""
        now_s = self._clock(now_s)
        known = self.settings.previous_epoch > 0
        self._step(SenderInput.START_AS_SUCCESSOR if known else SenderInput.START_UNKNOWN)
        self._next_heartbeat_s = now_s + self.settings.heartbeat_interval_s
        if not known:
            self._announced_at_s = now_s + self.settings.interruption_timeout_s
        return self._control(DatagramType.STARTUP, STARTUP_COPIES)

    def next_deadline_s(self) -> float | None:
        """When `handle_timeout` has something to do; None when never."""
        if self._machine.state in (SenderState.NEW, SenderState.CLOSED):
            return None
        times = [t for t in (self._next_heartbeat_s, self._announced_at_s) if t is not None]
        return min(times, default=None)

    def handle_timeout(self, now_s: float) -> list[Burst]:
        """What is due at `now_s`: StartUp, HeartBeat (GC-TIME-1)."""
        now_s = self._clock(now_s)
        due: list[Burst] = []
        if self._machine.state is SenderState.CLOSED:
            return due
        if self._announced_at_s is not None and now_s >= self._announced_at_s:
            self._announced_at_s = None
            if self._step(SenderInput.ANNOUNCED) is SenderEffect.SEND_HEARTBEAT:
                self._next_heartbeat_s = now_s + self.settings.heartbeat_interval_s
                due += self._control(DatagramType.HEARTBEAT)
        if self._next_heartbeat_s is not None and now_s >= self._next_heartbeat_s:
            interval = self.settings.heartbeat_interval_s
            self._next_heartbeat_s = max(self._next_heartbeat_s + interval, now_s + interval / 2)
            effect = self._step(SenderInput.HEARTBEAT_DUE)
            if effect is SenderEffect.SEND_STARTUP:
                due += self._control(DatagramType.STARTUP)
            elif effect is SenderEffect.SEND_HEARTBEAT:
                due += self._idle_summaries(now_s) + self._control(DatagramType.HEARTBEAT)
        return due

    def compose(
        self, runs: list[Run], record_count: int, write_body: Callable[[bytearray, int], None], now_s: float
    ) -> int:
        """Make the next message; its bursts are then built by `next_burst`.

        Args:
            runs: Positions of the records in it, where the source has positions.
            record_count: Records in it.
            write_body: Called with a buffer and an offset in bytes: writes the body there, to the buffer's new end.
            now_s: The time.

        Returns:
            The number of the message.

        Raises:
            LocalProtocolError: the session is not active, the message before is not finished, or the message is longer
                than the limit; then no number was used (GC-DLV-3).
        """
        chained = self._positions.chained(self.counters.messages, runs)
        number = self._compose(MessageKind.BATCH, chained, record_count, write_body)
        self._last_message_s = self._clock(now_s)
        self._positions.sent(chained)
        return number

    def compose_repair(self, spans: list[Span], write_body: Callable[[bytearray, int], None], now_s: float) -> int:
        """Make the next message of records that were lost before: outside of the chain of positions (GC-RPR-4).

        Args:
            spans: What it settles, at least one.
            write_body: As for `compose`; writes nothing when no span has records.
            now_s: The time.

        Returns:
            The number of the message.

        Raises:
            LocalProtocolError: as for `compose`.
        """
        number = self._compose(MessageKind.REPAIR, spans, 0, write_body)
        self._last_message_s = self._clock(now_s)
        return number

    @property
    def bursts_left(self) -> int:
        """Bursts of the composed message that `next_burst` has still to build."""
        return self._fragmenter.bursts_left if self._fragmenter else 0

    def next_burst(self, slab: Slab) -> Burst | None:
        """The next burst of the composed message, built in `slab`; None when all were built."""
        fragmenter = self._fragmenter
        if fragmenter is None:
            return None
        burst = fragmenter.build(slab, self._sequence)
        self._count(burst)
        if not fragmenter.bursts_left:
            self._fragmenter = None
            self.counters.messages += 1
            self.counters.records += self._record_count
        return burst

    def stop(self) -> list[Burst]:
        """End the session: what is still to be said, and the Shutdown datagrams (GC-SESS-4, GC-DLV-17).

        Raises:
            LocalProtocolError: a message is not finished.
        """
        if self._fragmenter is not None:
            raise LocalProtocolError("the message before the shutdown is not finished")
        last = self._summaries() if self._machine.state is SenderState.ACTIVE else []
        if self._step(SenderInput.STOP) is SenderEffect.SEND_SHUTDOWN:
            last += self._control(DatagramType.SHUTDOWN, SHUTDOWN_COPIES)
        return last

    def _clock(self, now_s: float) -> float:
        """Time never runs backwards here (GC-TIME-4)."""
        self._now_s = max(self._now_s, now_s)
        return self._now_s

    def _step(self, what: SenderInput) -> SenderEffect:
        state = self._machine.state
        effect = self._machine.step(what)
        if effect is SenderEffect.INVALID:
            raise LocalProtocolError(f"{what.value!r} is not possible in the state {state.value!r}")
        return effect

    def _compose(
        self,
        kind: MessageKind,
        runs: list[Run] | list[Span],
        record_count: int,
        write_body: Callable[[bytearray, int], None],
    ) -> int:
        if self._fragmenter is not None:
            raise LocalProtocolError("the message before is not finished")
        self._step(SenderInput.MESSAGE)
        message = self._message
        offset = begin_message(
            message, kind=kind, first_record=self.counters.records, record_count=record_count, runs=runs
        )
        write_body(message, offset)
        end_message(message)
        if len(message) > self.settings.message_bytes_max:
            raise LocalProtocolError(
                f"a message of {len(message)} bytes is longer than the limit of {self.settings.message_bytes_max} bytes"
            )
        number = self.counters.messages
        self._fragmenter = Fragmenter(
            message,
            cut=cut_of(len(message), self.settings.symbol_bytes_max, self.settings.burst_datagrams_max),
            link_id=self.settings.link_id,
            epoch=self.settings.epoch,
            number=number,
        )
        self._record_count = record_count
        return number

    def _idle_summaries(self, now_s: float) -> list[Burst]:
        """Position summaries, when nothing was sent for a heartbeat interval or no more can be noted (GC-DLV-17)."""
        idle = now_s - self._last_message_s >= self.settings.heartbeat_interval_s
        if self._fragmenter is not None or not self._positions or not (idle or self._positions.full):
            return []
        return self._summaries()

    def _summaries(self) -> list[Burst]:
        """`positions` messages for what was sent since the last ones, in slabs of their own."""
        bursts = []
        for runs in self._positions.take_summary(self.settings.message_bytes_max - MESSAGE_OVERHEAD_BYTES):
            self._compose(MessageKind.POSITIONS, runs, 0, lambda buffer, offset: None)
            while (burst := self.next_burst(Slab())) is not None:
                bursts.append(burst)
        return bursts

    def _control(self, kind: DatagramType, copies: int = 1) -> list[Burst]:
        bursts = []
        for _ in range(copies):
            header = Header(
                type=kind, link_id=self.settings.link_id, epoch=self.settings.epoch, sequence=self._sequence
            )
            (burst,) = burst_of([encode_datagram(header, self._announcement().pack())])
            self._count(burst)
            bursts.append(burst)
        self.counters.heartbeats += kind is DatagramType.HEARTBEAT
        return bursts

    def _count(self, burst: Burst) -> None:
        self._sequence += burst.count
        self.counters.datagrams += burst.count
        self.counters.bytes += burst.count * burst.datagram_bytes

    def _announcement(self) -> Announcement:
        settings = self.settings
        return Announcement(
            previous_epoch=settings.previous_epoch,
            messages_sent=self.counters.messages,
            records_sent=self.counters.records,
            records_filtered=self.counters.records_filtered,
            heartbeat_interval_ms=max(1, round(settings.heartbeat_interval_s * 1000)),
            interruption_timeout_ms=max(1, round(settings.interruption_timeout_s * 1000)),
            message_bytes_max=settings.message_bytes_max,
            mtu_bytes=settings.mtu_bytes,
            symbol_bytes_max=settings.symbol_bytes_max,
            phase=_PHASES[self._machine.state],
        )


_PHASES = {
    SenderState.NEW: Phase.ANNOUNCING,
    SenderState.ANNOUNCING: Phase.ANNOUNCING,
    SenderState.ACTIVE: Phase.ACTIVE,
    SenderState.CLOSED: Phase.CLOSING,
}
