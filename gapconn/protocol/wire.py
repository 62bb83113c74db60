"""The datagram: header, announcement, and a buffer of equal datagrams seen as a matrix (spec/wire.md).

All per-datagram work is done on whole bursts: a `Slab` is a 64 KiB buffer that is laid out as rows of equal length; its
header words, payloads and checks are columns. The views are made once per length and reused, since making them costs
more than using them.
"""

from __future__ import annotations

import struct
from typing import NewType

import attrs
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from gapconn.protocol.registry import (
    ANNOUNCEMENT_BYTES,
    CHECK_BYTES,
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    MAGIC,
    SYMBOLS_PER_BLOCK_MAX,
    VERSION,
    DatagramType,
    Flag,
    Phase,
)

Epoch = NewType("Epoch", int)
"""Names an ingress session: 64 bits, larger at every start."""
Sequence = NewType("Sequence", int)
"""Number of a datagram in its session, dense, from 0."""
MessageNumber = NewType("MessageNumber", int)
"""Number of a message in its session, dense, from 0."""

OVERHEAD_BYTES = HEADER_BYTES + CHECK_BYTES
"""What a datagram has beside its payload."""

SEQUENCE_LIMIT = 2**63
"""Sequence numbers stay below it, so that arithmetic on them never overflows 64 bits."""

SLAB_BYTES = 65_536
"""Room for what one GSO send or GRO receive can carry."""

ROWS_MAX = 64
"""The most datagrams that one GSO send takes on every kernel (UDP_MAX_SEGMENTS)."""

_HEADER = struct.Struct(">HBBHHIHBBQQQII")
# Where fields that are set or read by the column begin in the header, in bytes.
SEQUENCE_FIELD = slice(24, 32)
KEY_ID_FIELD = 15
NONCE_FIELD = slice(20, 32)
"""The lower half of the epoch, and the sequence (GC-SEC-1)."""
KEY_NAME_FIELD = slice(15, 28)
"""Key id, epoch, and the upper half of the sequence: they name a session key (GC-SEC-2)."""
SESSION_FIELDS = slice(0, 28)
"""What is alike in all datagrams that one session key seals, and little else: up to the upper half of the sequence."""
LAST_WORD = slice(40, 48)
SYMBOL_FIELD = slice(44, 48)
_ANNOUNCEMENT = struct.Struct(">QQQQIIIHHBBBBIQ")
assert _HEADER.size == HEADER_BYTES
assert _ANNOUNCEMENT.size == ANNOUNCEMENT_BYTES


@attrs.frozen(kw_only=True)
class Header:
    """The header of one datagram, field by field as in spec/wire.md."""

    type: int
    link_id: int
    epoch: int
    sequence: int
    flags: int = 0
    symbol_bytes: int = 0
    blocks: int = 0
    """Over so many blocks the symbols of the message are spread."""
    repair_symbols: int = 0
    """Of each block."""
    key_id: int = 0
    message: int = 0
    message_bytes: int = 0
    symbol: int = 0
    """Number of the symbol in its message: first the source symbols, then the repair symbols."""
    magic: int = MAGIC
    version: int = VERSION

    def pack(self) -> bytes:
        """The 48 bytes of the header."""
        return _HEADER.pack(
            self.magic,
            self.version,
            self.type,
            self.flags,
            self.symbol_bytes,
            self.link_id,
            self.blocks,
            self.repair_symbols,
            self.key_id,
            self.epoch,
            self.sequence,
            self.message,
            self.message_bytes,
            self.symbol,
        )

    @classmethod
    def unpack(cls, buffer: memoryview | bytes, offset: int = 0) -> Header:
        """The header at `offset`, nothing of it checked. `buffer` has at least 48 bytes from there."""
        magic, version, kind, flags, size, link, blocks, repair, key, epoch, sequence, message, length, symbol = (
            _HEADER.unpack_from(buffer, offset)
        )
        return cls(
            magic=magic,
            version=version,
            type=kind,
            flags=flags,
            symbol_bytes=size,
            link_id=link,
            blocks=blocks,
            repair_symbols=repair,
            key_id=key,
            epoch=epoch,
            sequence=sequence,
            message=message,
            message_bytes=length,
            symbol=symbol,
        )

    @property
    def source_symbols(self) -> int:
        """Source symbols of the message. Only where the symbol length is not 0."""
        return -(-self.message_bytes // self.symbol_bytes)

    def well_formed(self, payload_bytes: int, count: int = 1) -> bool:
        """Whether the fields agree with each other and with a payload of that many bytes (GC-WIRE-7, GC-WIRE-9).

        With a `count`, the same of this header and those that continue it: sequence and symbol each one more.
        """
        sealed = self.flags & Flag.SEALED
        if self.epoch == 0 or self.sequence + count > SEQUENCE_LIMIT or (self.key_id and not sealed):
            return False
        if self.type != DatagramType.DATA:
            symbol_fields = (
                self.symbol_bytes,
                self.blocks,
                self.repair_symbols,
                self.message,
                self.message_bytes,
                self.symbol,
            )
            return payload_bytes == ANNOUNCEMENT_BYTES and not any(symbol_fields)
        return (
            1 <= self.symbol_bytes == payload_bytes
            and self.message_bytes > 32
            and 1 <= self.blocks <= self.source_symbols
            and -(-self.source_symbols // self.blocks) + self.repair_symbols <= SYMBOLS_PER_BLOCK_MAX
            and self.symbol + count <= self.source_symbols + self.repair_symbols * self.blocks
            and self.message <= self.sequence
        )


@attrs.frozen(kw_only=True)
class Announcement:
    """What an ingress says of itself in StartUp, HeartBeat and Shutdown (GC-WIRE-8)."""

    previous_epoch: int
    """Epoch of the session before this one on the same link, as stored; 0 if not known."""
    messages_sent: int
    records_sent: int
    records_filtered: int
    heartbeat_interval_ms: int
    interruption_timeout_ms: int
    message_bytes_max: int
    mtu_bytes: int
    symbol_bytes_max: int
    security_mode: int = 0
    fec_source_symbols: int = 0
    fec_repair_symbols: int = 0
    phase: int
    reserved: int = 0

    def pack(self) -> bytes:
        """The 64 bytes of the announcement."""
        return _ANNOUNCEMENT.pack(
            self.previous_epoch,
            self.messages_sent,
            self.records_sent,
            self.records_filtered,
            self.heartbeat_interval_ms,
            self.interruption_timeout_ms,
            self.message_bytes_max,
            self.mtu_bytes,
            self.symbol_bytes_max,
            self.security_mode,
            self.fec_source_symbols,
            self.fec_repair_symbols,
            self.phase,
            *divmod(self.reserved, 2**64),
        )

    @classmethod
    def unpack(cls, payload: memoryview | bytes) -> Announcement:
        """The announcement in a payload of 64 bytes, nothing of it checked."""
        previous, messages, records, filtered, beat, interruption, length, mtu, symbol, mode, k, m, phase, high, low = (
            _ANNOUNCEMENT.unpack(payload)
        )
        return cls(
            previous_epoch=previous,
            messages_sent=messages,
            records_sent=records,
            records_filtered=filtered,
            heartbeat_interval_ms=beat,
            interruption_timeout_ms=interruption,
            message_bytes_max=length,
            mtu_bytes=mtu,
            symbol_bytes_max=symbol,
            security_mode=mode,
            fec_source_symbols=k,
            fec_repair_symbols=m,
            phase=phase,
            reserved=high * 2**64 + low,
        )

    def well_formed(self, header: Header) -> bool:
        """Whether the fields agree with each other and with the datagram's header (GC-WIRE-9)."""
        return (
            self.messages_sent <= header.sequence
            and self.previous_epoch < header.epoch
            and 1 <= self.heartbeat_interval_ms <= self.interruption_timeout_ms
            and self.phase in _PHASES
            and self.reserved == 0
        )


_PHASES = frozenset(Phase)


def check_of(datagram: memoryview | bytes) -> int:
    """The check of a datagram given without it (GC-WIRE-2)."""
    digest: int = xxh3_64_intdigest(datagram)
    return digest


def encode_datagram(header: Header, payload: bytes) -> bytes:
    """One whole datagram. For control datagrams and tests; symbols are built by the burst."""
    covered = header.pack() + payload
    return covered + check_of(covered).to_bytes(CHECK_BYTES, "big")


class Layout:
    """The views of a slab as rows of one length. Row views are contiguous; column views are strided.

    Args:
        flat: The bytes, from the first row on.
        datagram_bytes: Length of a row.
        rows: How many.
        trailer_bytes: What stands behind the payload: a check or a tag.
    """

    __slots__ = (
        "_views",
        "checks",
        "datagram_bytes",
        "flat",
        "header_bytes",
        "last_words",
        "matrix",
        "payloads",
        "rows",
        "sequences",
        "session_fields",
        "symbols",
        "trailer_bytes",
        "words",
    )

    def __init__(
        self, flat: NDArray[np.uint8], datagram_bytes: int, rows: int, trailer_bytes: int = CHECK_BYTES
    ) -> None:
        self.rows = rows
        self.datagram_bytes = datagram_bytes
        self.trailer_bytes = trailer_bytes
        self.flat = flat[: rows * datagram_bytes].data
        """The rows one behind the other, for the socket."""
        self.matrix = flat[: rows * datagram_bytes].reshape(rows, datagram_bytes)
        self.header_bytes = self.matrix[:, :HEADER_BYTES]
        self.words: NDArray[np.uint64] = self.header_bytes.view(np.uint64)
        """The six header words in wire order: good for comparing for equality, not as numbers."""
        self.sequences = self.matrix[:, SEQUENCE_FIELD].view(">u8")[:, 0]
        self.session_fields: NDArray[np.uint32] = self.matrix[:, SESSION_FIELDS].view(np.uint32)
        """The first seven half words, good for comparing for equality."""
        self.last_words = self.matrix[:, LAST_WORD].view(">u8")[:, 0]
        """Message length and symbol as one number, which counts up with the symbol."""
        self.symbols = self.matrix[:, SYMBOL_FIELD].view(">u4")[:, 0]
        self.payloads = self.matrix[:, HEADER_BYTES : datagram_bytes - trailer_bytes]
        self.checks = self.matrix[:, datagram_bytes - CHECK_BYTES :].view(">u8")[:, 0]
        self._views: dict[tuple[int, int], list[memoryview]] = {}

    @property
    def covered(self) -> list[memoryview]:
        """What each row's check covers."""
        return self.views(0, self.datagram_bytes - CHECK_BYTES)

    def header(self, row: int) -> Header:
        """The header in this row."""
        return Header.unpack(self.flat, row * self.datagram_bytes)

    def views(self, start: int, stop: int) -> list[memoryview]:
        """The bytes `start` to `stop` of each row. Made once: a fresh slice per datagram costs more than its hash."""
        found = self._views.get((start, stop))
        if found is None:
            begins = range(0, self.rows * self.datagram_bytes, self.datagram_bytes)
            flat = self.flat
            found = self._views[start, stop] = [flat[i + start : i + stop] for i in begins]
        return found


class Slab:
    """A reusable buffer for one burst of equal datagrams, with its views kept per datagram length."""

    __slots__ = ("_layouts", "flat")

    LAYOUTS_MAX = 32
    """Lengths for which views are kept; the one that was made first gives way."""

    def __init__(self, size_bytes: int = SLAB_BYTES) -> None:
        self.flat: NDArray[np.uint8] = np.zeros(size_bytes, np.uint8)
        self._layouts: dict[int, Layout] = {}

    def layout(self, datagram_bytes: int, count: int, offset: int = 0, *, trailer_bytes: int = CHECK_BYTES) -> Layout:
        """The views for at least `count` rows of `datagram_bytes`, the first of which is at `offset`.

        A row has at least room for a header and the trailer.
        """
        if offset:  # the odd end of a burst: rare, and not worth remembering
            return Layout(self.flat[offset:], datagram_bytes, count, trailer_bytes)
        found = self._layouts.get(datagram_bytes)
        if found is None or found.rows < count or found.trailer_bytes != trailer_bytes:
            if len(self._layouts) >= self.LAYOUTS_MAX:
                self._layouts.pop(next(iter(self._layouts)))
            found = self._layouts[datagram_bytes] = Layout(self.flat, datagram_bytes, count, trailer_bytes)
        return found


@attrs.frozen
class Burst:
    """Datagrams of equal length in a slab: what one GSO send or GRO receive carries."""

    slab: Slab
    datagram_bytes: int
    """Length of each."""
    count: int
    offset: int = 0
    """Where the first one begins in the slab."""
    came_from: str = ""
    """Sender's address, as the datagrams say it; empty where nobody knows."""
    dropped_before: int = 0
    """At most so many datagrams did reach this host directly before these, and were dropped by it unread."""

    @property
    def bytes(self) -> memoryview:
        """All datagrams, one behind the other."""
        end = self.offset + self.count * self.datagram_bytes
        return self.slab.flat[self.offset : end].data


def burst_of(datagrams: list[bytes]) -> list[Burst]:
    """Bursts that hold these datagrams in their order, in slabs of their own. For tests and small numbers."""
    bursts = []
    for datagram in datagrams:
        slab = Slab(max(1, len(datagram)))
        slab.flat[: len(datagram)] = np.frombuffer(datagram, np.uint8)
        bursts.append(Burst(slab, len(datagram), 1))
    return bursts


def rows_per_burst(datagram_bytes: int) -> int:
    """How many datagrams of that length one burst carries at the most."""
    return max(1, min(ROWS_MAX, DATAGRAM_BYTES_MAX // datagram_bytes))
