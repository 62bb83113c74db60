"""The sending half of a link: messages and time in, bursts of datagrams out."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from gapconn.errors import LocalProtocolError
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES, Copy, Run, Span, begin_message, end_message
from gapconn.protocol.fec import WHOLE, Codec, NumpyCodec, block_symbols_max, repair_symbols
from gapconn.protocol.fragmenter import Fragmenter, cut_of
from gapconn.protocol.positions import SentPositions
from gapconn.protocol.protection import CHECKSUM, Protector
from gapconn.protocol.registry import (
    ANNOUNCEMENT_BYTES,
    CHECK_BYTES,
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    SHUTDOWN_COPIES,
    STARTUP_COPIES,
    TAG_BYTES,
    Compression,
    DatagramType,
    MessageKind,
    Phase,
)
from gapconn.protocol.security import Keys, Sealer
from gapconn.protocol.states import SenderEffect, SenderInput, SenderMachine, SenderState
from gapconn.protocol.wire import ROWS_MAX, Announcement, Burst, Header, Slab, burst_of


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
    repair_share: int = 0
    """Repair symbols, in hundredths of a percent of the source symbols; 0 turns forward error correction off."""
    burst_datagrams_max: int = ROWS_MAX
    """Fewer at a low rate, so that heartbeats find their way between bursts (GC-TIME-1)."""
    keys: Keys | None = None
    """Secrets to seal datagrams with (GC-SEC-1); None for security mode `none`."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.previous_epoch < self.epoch < 2**64:
            raise LocalProtocolError(f"epoch {self.epoch} is not above the previous one, {self.previous_epoch}")
        if not 0 < self.heartbeat_interval_s <= self.interruption_timeout_s:
            raise LocalProtocolError("the interruption timeout is shorter than the heartbeat interval")
        if self.datagram_bytes_max <= self.overhead_bytes + ANNOUNCEMENT_BYTES or self.mtu_bytes > 65_535:
            raise LocalProtocolError(f"an MTU of {self.mtu_bytes} bytes cannot be used or announced")
        if self.message_bytes_max > MESSAGE_BYTES_MAX:
            raise LocalProtocolError(f"a message limit of {self.message_bytes_max} bytes is too large")
        if not 0 <= self.repair_share <= WHOLE:
            raise LocalProtocolError(f"a repair share of {self.repair_share / 100} % cannot be used")

    @property
    def datagram_bytes_max(self) -> int:
        """UDP payload that fits the MTU (GC-WIRE-6)."""
        return self.mtu_bytes - self.ip_header_bytes

    @property
    def symbol_bytes_max(self) -> int:
        """Payload of a Data datagram at the most."""
        return self.datagram_bytes_max - self.overhead_bytes

    @property
    def overhead_bytes(self) -> int:
        """What a datagram has beside its payload."""
        return HEADER_BYTES + (CHECK_BYTES if self.keys is None else TAG_BYTES)


@attrs.define(kw_only=True)
class SenderCounters:
    """What was built so far. Plain numbers; they only grow."""

    datagrams: int = 0
    bytes: int = 0
    """UDP payload bytes."""
    messages: int = 0
    records: int = 0
    records_filtered: int = 0
    body_bytes: int = 0
    """Bodies of messages, as they cross."""
    plain_body_bytes: int = 0
    """The same bodies before they were compressed."""
    heartbeats: int = 0
    repair_symbols: int = 0
    """Of the datagrams, those that carry a repair symbol."""
    messages_repeated: int = 0
    """Messages sent again, each time counted."""
    datagrams_repeated: int = 0
    """Of the datagrams, those of messages sent again."""


class LinkSender:
    """Builds everything that an ingress sends, in the order in which it must be sent.

    Bursts must go to the network in the order in which this class made them. Time is monotonic, in seconds.

    Args:
        settings: What the ingress is configured to do.
        codec: Makes repair symbols.

    Attributes:
        keep: Called with each message when it is made, its number and its bytes, for whoever wants to send it again.
            The bytes are only valid during the call.
    """

    def __init__(self, settings: SenderSettings, codec: Codec | None = None) -> None:
        self.settings = settings
        self.keep: Callable[[int, bytearray], None] | None = None
        self.codec = codec or NumpyCodec()
        self._workspace = Workspace()
        self.counters = SenderCounters()
        self._sealer: Sealer | None = None
        self._protector: Protector = CHECKSUM
        if settings.keys is not None:
            self._protector = self._sealer = Sealer(link_id=settings.link_id, epoch=settings.epoch, keys=settings.keys)
        self._machine = SenderMachine()
        self._sequence = 0
        self._positions = SentPositions()
        self._message = bytearray()
        self._fragmenter: Fragmenter | None = None
        self._repeater: Fragmenter | None = None
        """Of a message that is sent again: its bursts may be built between those of new messages."""
        self._repeater_workspace = Workspace()
        self._record_count = 0
        self._next_heartbeat_s: float | None = None
        self._announced_at_s: float | None = None
        self._last_message_s = -math.inf
        self._now_s = -math.inf
        self.paused = False
        """Whether the source is paused: announced while the session is active (GC-SESS-17)."""

    @property
    def state(self) -> SenderState:
        """Where the session is."""
        return self._machine.state

    @property
    def key_id(self) -> int:
        """The key with which the next datagrams are sealed; 0 in security mode `none`."""
        return self._protector.key_id

    def use_keys(self, keys: Keys) -> None:
        """Seal what is built from now on with these keys; the session goes on (GC-SEC-4).

        Raises:
            LocalProtocolError: the session is not sealed.
        """
        if self._sealer is None:
            raise LocalProtocolError("a session begun in security mode none stays in it")
        self._sealer.use(keys)

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
        self,
        runs: list[Run],
        record_count: int,
        write_body: Callable[[bytearray, int], None],
        now_s: float,
        *,
        compression: Compression = Compression.NONE,
        plain_bytes: int = 0,
    ) -> int:
        """Make the next message; its bursts are then built by `next_burst`.

        Args:
            runs: Positions of the records in it, where the source has positions.
            record_count: Records in it.
            write_body: Called with a buffer and an offset in bytes: writes the body there, to the buffer's new end.
            now_s: The time.
            compression: How the body that is written is compressed.
            plain_bytes: Its length before it was compressed; 0 if it is plain.

        Returns:
            The number of the message.

        Raises:
            LocalProtocolError: the session is not active, the message before is not finished, or the message is longer
                than the limit, or its body was; then no number was used (GC-DLV-3, GC-COMP-1).
        """
        chained = self._positions.chained(self.counters.messages, runs)
        number = self._compose(
            MessageKind.BATCH, chained, record_count, write_body, compression=compression, plain_bytes=plain_bytes
        )
        self._last_message_s = self._clock(now_s)
        self._positions.sent(chained)
        return number

    def compose_repair(
        self,
        spans: list[Span],
        write_body: Callable[[bytearray, int], None],
        now_s: float,
        *,
        compression: Compression = Compression.NONE,
        plain_bytes: int = 0,
    ) -> int:
        """Make the next message of records that were lost before: outside of the chain of positions (GC-RPR-4).

        Args:
            spans: What it settles, at least one.
            write_body: As for `compose`; writes nothing when no span has records.
            now_s: The time.
            compression: As for `compose`; none without a body.
            plain_bytes: As for `compose`.

        Returns:
            The number of the message.

        Raises:
            LocalProtocolError: as for `compose`.
        """
        number = self._compose(
            MessageKind.REPAIR, spans, 0, write_body, compression=compression, plain_bytes=plain_bytes
        )
        self._last_message_s = self._clock(now_s)
        return number

    def compose_copy(self, copies: list[Copy], message: bytes | memoryview, now_s: float) -> int:
        """Make the next message of one of an earlier session, or say which messages are gone (GC-RPR-8).

        Args:
            copies: What it settles: one message, or ranges that are gone.
            message: The one message, as `keep` was given it; empty if they are gone.
            now_s: The time.

        Returns:
            The number of the message.

        Raises:
            LocalProtocolError: as for `compose`.
        """

        def write(buffer: bytearray, offset: int) -> None:
            buffer[offset:] = message

        number = self._compose(MessageKind.COPY, copies, 0, write)
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
            self.counters.repair_symbols += fragmenter.repair_symbols
        return burst

    def begin_repeat(self, number: int, message: bytes | memoryview, burst_datagrams_max: int) -> None:
        """Send a message of this session again, byte for byte (GC-RPT-1); `next_repeat_burst` builds its bursts.

        A repeat that was begun before and not finished is given up.

        Args:
            number: Of the message.
            message: As `keep` was given it.
            burst_datagrams_max: Datagrams per burst: what is new waits for one burst at the most.

        Raises:
            LocalProtocolError: the session is not active, or no message of this number was sent.
        """
        self._step(SenderInput.MESSAGE)
        if not 0 <= number < self.counters.messages:
            raise LocalProtocolError(f"message {number} was not sent yet, and cannot be repeated")
        self._repeater = self._fragment(
            bytearray(message), number, min(burst_datagrams_max, self.settings.burst_datagrams_max),
            self._repeater_workspace,
        )  # fmt: skip

    @property
    def repeat_burst_bytes(self) -> int:
        """UDP payload of a datagram of the repeat, in bytes; 0 if `next_repeat_burst` has nothing to build."""
        return self._repeater.datagram_bytes if self._repeater else 0

    @property
    def repeat_burst_datagrams(self) -> int:
        """Datagrams of the burst that `next_repeat_burst` builds next, at the most."""
        return self._repeater.rows if self._repeater else 0

    def next_repeat_burst(self, slab: Slab) -> Burst | None:
        """The next burst of the message that is sent again; None when all were built.

        Raises:
            LocalProtocolError: the session is not active any more.
        """
        repeater = self._repeater
        if repeater is None:
            return None
        if self._machine.state is not SenderState.ACTIVE:
            raise LocalProtocolError("nothing is repeated when the session is over")
        burst = repeater.build(slab, self._sequence)
        self._count(burst)
        self.counters.datagrams_repeated += burst.count
        if not repeater.bursts_left:
            self._repeater = None
            self.counters.messages_repeated += 1
            self.counters.repair_symbols += repeater.repair_symbols
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
        runs: list[Run] | list[Span] | list[Copy],
        record_count: int,
        write_body: Callable[[bytearray, int], None],
        *,
        compression: Compression = Compression.NONE,
        plain_bytes: int = 0,
    ) -> int:
        if self._fragmenter is not None:
            raise LocalProtocolError("the message before is not finished")
        self._step(SenderInput.MESSAGE)
        message = self._message
        offset = begin_message(
            message,
            kind=kind,
            first_record=self.counters.records,
            record_count=record_count,
            runs=runs,
            compression=compression,
            plain_bytes=plain_bytes,
        )
        write_body(message, offset)
        body_bytes = len(message) - offset
        end_message(message)
        # A receiver with the same limit must be able to inflate it.
        longest = len(message) - body_bytes + max(body_bytes, plain_bytes)
        if longest > self.settings.message_bytes_max:
            raise LocalProtocolError(
                f"a message of {longest} bytes is longer than the limit of {self.settings.message_bytes_max} bytes"
            )
        number = self.counters.messages
        if self.keep is not None:
            self.keep(number, message)
        self._fragmenter = self._fragment(message, number, self.settings.burst_datagrams_max, self._workspace)
        self._record_count = record_count
        self.counters.body_bytes += body_bytes
        self.counters.plain_body_bytes += plain_bytes or body_bytes
        return number

    def _fragment(self, message: bytearray, number: int, rows_max: int, workspace: Workspace) -> Fragmenter:
        """Cut a message, the same one always in the same way."""
        settings = self.settings
        return Fragmenter(
            message,
            cut=cut_of(
                len(message), settings.symbol_bytes_max, rows_max, settings.repair_share, settings.overhead_bytes
            ),
            link_id=settings.link_id,
            epoch=settings.epoch,
            number=number,
            codec=self.codec,
            workspace=workspace,
            protector=self._protector,
        )

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
                type=kind,
                link_id=self.settings.link_id,
                epoch=self.settings.epoch,
                sequence=self._sequence,
                flags=self._protector.flags,
                key_id=self._protector.key_id,
            )
            trailer_bytes = self._protector.trailer_bytes
            (burst,) = burst_of([header.pack() + self._announcement().pack() + bytes(trailer_bytes)])
            self._protector.protect(burst.slab.layout(burst.datagram_bytes, 1, trailer_bytes=trailer_bytes), 1)
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
        block_symbols = block_symbols_max(settings.repair_share) if settings.repair_share else 0
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
            fec_source_symbols=block_symbols,
            fec_repair_symbols=repair_symbols(block_symbols, settings.repair_share),
            security_mode=self._protector.mode,
            phase=Phase.PAUSED if self.paused and self.state is SenderState.ACTIVE else _PHASES[self._machine.state],
        )


_PHASES = {
    SenderState.NEW: Phase.ANNOUNCING,
    SenderState.ANNOUNCING: Phase.ANNOUNCING,
    SenderState.ACTIVE: Phase.ACTIVE,
    SenderState.CLOSED: Phase.CLOSING,
}
