"""Datagrams made by hand, field by field, as the tests of the core and the vectors of the specification need them.

Nothing here goes through `LinkSender` or the fragmenter: what they build is compared with what is made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import attrs
import numpy as np
from msgspec.structs import replace

from gapconn.protocol.envelope import Run, Span, begin_message, end_message
from gapconn.protocol.events import Event
from gapconn.protocol.positions import StreamPartition
from gapconn.protocol.progress import Progress
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import Compression, DatagramType, DropReason, MessageKind, Phase
from gapconn.protocol.wire import ROWS_MAX, SLAB_BYTES, Announcement, Burst, Header, Slab, encode_datagram
from tests.protocol import galois

LINK_ID = 7
EPOCH = 1_000

ANNOUNCEMENT = Announcement(
    previous_epoch=0,
    messages_sent=0,
    records_sent=0,
    records_filtered=0,
    heartbeat_interval_ms=1_000,
    interruption_timeout_ms=3_000,
    message_bytes_max=16 << 20,
    mtu_bytes=1_500,
    symbol_bytes_max=1_416,
    phase=Phase.ACTIVE,
)
"""What a session of these tests says of itself, if nothing else is asked for."""


def message_of(
    body: bytes = b"",
    *,
    runs: Sequence[Run] | Sequence[Span] = (),
    first_record: int = 0,
    record_count: int = 1,
    kind: MessageKind = MessageKind.BATCH,
    compression: Compression = Compression.NONE,
    plain_bytes: int = 0,
) -> bytes:
    """A whole message around `body`, which is compressed as `compression` and `plain_bytes` say."""
    buffer = bytearray()
    begin_message(
        buffer,
        kind=kind,
        first_record=first_record,
        record_count=record_count,
        runs=cast(list[Run] | list[Span], list(runs)),
        compression=compression,
        plain_bytes=plain_bytes,
    )
    buffer += body
    end_message(buffer)
    return bytes(buffer)


def cut(message: bytes, symbol_bytes: int) -> list[bytes]:
    """The source symbols of a message, the last one filled up with zeros."""
    return [message[i : i + symbol_bytes].ljust(symbol_bytes, b"\0") for i in range(0, len(message), symbol_bytes)]


@attrs.define(kw_only=True)
class Session:
    """An ingress session written out by hand: it numbers datagrams, messages and records, and sends nothing itself."""

    epoch: int = EPOCH
    link_id: int = LINK_ID
    previous_epoch: int = 0
    symbol_bytes: int = 64
    """Cut of its messages. 64 makes Data as long as announcements, so that they share bursts."""
    block_symbols: int = 4
    """Source symbols of a block at the most."""
    repair_symbols: int = 0
    """Of each block."""
    sequence: int = 0
    """Of the next datagram."""
    messages: int = 0
    """Messages so far, so the number of the next."""
    records: int = 0
    chains: dict[StreamPartition, Run] = attrs.field(factory=dict)
    """By stream partition: the first run of the chain that was sent last."""

    def startup(self, **changes: int) -> bytes:
        """A StartUp."""
        return self._control(DatagramType.STARTUP, changes)

    def heartbeat(self, **changes: int) -> bytes:
        """A HeartBeat."""
        return self._control(DatagramType.HEARTBEAT, changes)

    def shutdown(self, **changes: int) -> bytes:
        """A Shutdown."""
        return self._control(DatagramType.SHUTDOWN, {"phase": Phase.CLOSING, **changes})

    def message(self, body: bytes = b"", *, runs: Sequence[Run] = (), record_count: int = 1) -> list[bytes]:
        """The datagrams of the session's next message."""
        message = message_of(body, runs=self._chained(runs), first_record=self.records, record_count=record_count)
        self.records += record_count
        return self.symbols(message)

    def positions(self, *runs: Run) -> list[bytes]:
        """The datagrams of a `positions` message, the session's next."""
        return self.symbols(
            message_of(runs=self._chained(runs), first_record=self.records, record_count=0, kind=MessageKind.POSITIONS)
        )

    def repair(self, *spans: Span, body: bytes = b"") -> list[bytes]:
        """The datagrams of a `repair` message, the session's next."""
        return self.symbols(
            message_of(body, runs=spans, first_record=self.records, record_count=0, kind=MessageKind.REPAIR)
        )

    def symbols(self, message: bytes) -> list[bytes]:
        """The datagrams of these bytes as the session's next message, whatever they are."""
        source = cut(message, self.symbol_bytes)
        blocks = -(-len(source) // self.block_symbols)
        datagrams = []
        for i, symbol in enumerate(source + galois.repair_of(source, blocks, self.repair_symbols)):
            datagrams.append(
                self.datagram(
                    DatagramType.DATA,
                    symbol,
                    Header(
                        type=DatagramType.DATA,
                        link_id=self.link_id,
                        epoch=self.epoch,
                        sequence=0,
                        symbol_bytes=len(symbol),
                        blocks=blocks,
                        repair_symbols=self.repair_symbols,
                        message=self.messages,
                        message_bytes=len(message),
                        symbol=i,
                    ),
                )
            )
        self.messages += 1
        return datagrams

    def _chained(self, runs: Sequence[Run]) -> list[Run]:
        chained = []
        for run in runs:
            key = (run.stream, run.partition)
            if run.previous == -1 or key not in self.chains:
                self.chains[key] = replace(run, begun=run.first, continues=run.previous >= 0, chain=self.messages)
            began = self.chains[key]
            chained.append(replace(run, begun=began.begun, continues=began.continues, chain=began.chain))
        return chained

    def datagram(self, kind: DatagramType, payload: bytes, header: Header | None = None) -> bytes:
        """A datagram with the session's next sequence; the rest as in `header`, if it is given."""
        header = header or Header(type=kind, link_id=self.link_id, epoch=self.epoch, sequence=0)
        datagram = encode_datagram(attrs.evolve(header, sequence=self.sequence), payload)
        self.sequence += 1
        return datagram

    def again(self, datagram: bytes) -> bytes:
        """The same datagram with the session's next sequence."""
        changed = with_header(datagram, sequence=self.sequence)
        self.sequence += 1
        return changed

    def _control(self, kind: DatagramType, changes: dict[str, int]) -> bytes:
        said = attrs.evolve(
            ANNOUNCEMENT,
            previous_epoch=self.previous_epoch,
            messages_sent=self.messages,
            records_sent=self.records,
        )
        return self.datagram(kind, attrs.evolve(said, **changes).pack())


def with_header(datagram: bytes, **changes: int) -> bytes:
    """The datagram with other header fields, and a check that fits."""
    return encode_datagram(attrs.evolve(Header.unpack(datagram), **changes), datagram[48:-8])


def with_payload(datagram: bytes, payload: bytes) -> bytes:
    """The datagram with another payload, and a check that fits."""
    return encode_datagram(Header.unpack(datagram), payload)


def burst(*datagrams: bytes, offset: int = 0) -> Burst:
    """Datagrams of equal length as one burst, the first of which begins at `offset` in its slab."""
    (size,) = {len(datagram) for datagram in datagrams}
    joined = b"".join(datagrams)
    slab = Slab(offset + len(joined))
    slab.flat[offset:] = np.frombuffer(joined, np.uint8)
    return Burst(slab, size, len(datagrams), offset)


def bursts(datagrams: Iterable[bytes], rows_max: int = ROWS_MAX) -> list[Burst]:
    """The datagrams in their order, as a kernel would join them: neighbours of equal length in one burst."""
    groups: list[list[bytes]] = []
    for datagram in datagrams:
        group = groups[-1] if groups else []
        if (
            group
            and len(group[0]) == len(datagram)
            and len(group) < rows_max
            and (len(group) + 1) * len(datagram) <= SLAB_BYTES
        ):
            group.append(datagram)
        else:
            groups.append([datagram])
    return [burst(*group) for group in groups]


def plain(event: Event, without: str = "") -> tuple[str, str]:
    """An event to compare and sort by: its name, and what it says but for one field."""
    said = {name: getattr(event, name) for name in attrs.fields_dict(type(event)) if name != without}
    if "body" in said:
        said["body"] = bytes(said["body"])
    return type(event).__name__, repr(said)


def split(burst: Burst) -> list[bytes]:
    """The datagrams of a burst."""
    data = bytes(burst.bytes)
    return [data[i : i + burst.datagram_bytes] for i in range(0, len(data), burst.datagram_bytes)]


@attrs.define
class Egress:
    """A receiver and the time, for tests: datagrams in, events out."""

    receiver: LinkReceiver
    now_s: float = 0.0

    @classmethod
    def make(
        cls,
        *,
        resume: Progress | None = None,
        now_s: float = 0.0,
        interruption_timeout_s: float = 3.0,
        hold_s: float = 0.2,
        available: bool = False,
        reassembly_bytes_max: int = 1 << 20,
        message_bytes_max: int = 1 << 16,
    ) -> Egress:
        """An egress of the tests' link."""
        settings = ReceiverSettings(
            link_id=LINK_ID,
            interruption_timeout_s=interruption_timeout_s,
            hold_s=hold_s,
            available=available,
            reassembly_bytes_max=reassembly_bytes_max,
            message_bytes_max=message_bytes_max,
        )
        return cls(LinkReceiver(settings, now_s=now_s, resume=resume), now_s)

    def hear(self, *datagrams: bytes | list[bytes], after_s: float = 0.0) -> list[Event]:
        """Receive datagrams, one burst each, after some time; what happened."""
        self.now_s += after_s
        for item in datagrams:
            for datagram in [item] if isinstance(item, bytes) else item:
                self.receiver.receive(burst(datagram), self.now_s)
        return self.receiver.take_events()

    def wait(self, seconds: float) -> list[Event]:
        """Let time pass, with the timer called whenever it asks for it; what happened."""
        end_s = self.now_s + seconds
        while (deadline := self.receiver.next_deadline_s()) is not None and deadline <= end_s:
            self.now_s = max(self.now_s, deadline)
            self.receiver.handle_timeout(self.now_s)
            later = self.receiver.next_deadline_s()
            assert later is None or later > deadline, "a timer that was called at its deadline is still due"
        self.now_s = end_s
        self.receiver.handle_timeout(end_s)
        return self.receiver.take_events()

    @property
    def dropped(self) -> dict[DropReason, int]:
        """What was dropped so far, by reason."""
        return {reason: count for reason, count in self.receiver.counters.dropped.items() if count}
