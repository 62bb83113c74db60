"""The message around a batch: envelope, positions, check (spec/wire.md, "Message")."""

from __future__ import annotations

import struct
from typing import Annotated

import attrs
import msgspec
from xxhash import xxh3_64_digest

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.registry import ENVELOPE_BYTES, MESSAGE_CHECK_BYTES, Compression, MessageKind

_ENVELOPE = struct.Struct(">BBHIQII")
assert _ENVELOPE.size == ENVELOPE_BYTES

MESSAGE_OVERHEAD_BYTES = ENVELOPE_BYTES + MESSAGE_CHECK_BYTES
"""What a message has beside its positions and its body."""


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Positions of a run of records of one stream partition."""

    stream: str
    partition: int
    previous: Annotated[int, msgspec.Meta(ge=-1)]
    """Position of the last record sent before; -1 claims nothing."""
    first: Annotated[int, msgspec.Meta(ge=0)]
    last: Annotated[int, msgspec.Meta(ge=0)]
    count: Annotated[int, msgspec.Meta(ge=0)]
    begun: int = -1
    """First position of this chain in the session; filled in by the sending half."""
    continues: bool = False
    """Whether the chain goes on where an earlier session of the link ended; filled in by the sending half."""
    chain: int = -1
    """Number of the message with which this chain began; filled in by the sending half."""


_encode_runs = msgspec.msgpack.Encoder().encode
_decode_runs = msgspec.msgpack.Decoder(list[Run]).decode


@attrs.frozen(kw_only=True)
class Message:
    """A message that was checked and opened."""

    kind: MessageKind
    first_record: int
    record_count: int
    runs: list[Run]
    body: memoryview
    """A view into the message's bytes: as it crossed, compressed or not."""
    compression: Compression
    plain_bytes: int
    """Length of the body before it was compressed; 0 if it was not."""


def begin_message(
    buffer: bytearray,
    *,
    kind: MessageKind,
    first_record: int,
    record_count: int,
    runs: list[Run],
    compression: Compression = Compression.NONE,
    plain_bytes: int = 0,
) -> int:
    """Start a message in `buffer`, whatever it held; the offset at which the body goes, in bytes."""
    positions = _encode_runs(runs) if runs else b"\x90"
    buffer[:] = (
        _ENVELOPE.pack(kind, compression, 0, len(positions), first_record, record_count, plain_bytes) + positions
    )
    return len(buffer)


def end_message(buffer: bytearray) -> None:
    """Append the check (GC-WIRE-10): the message is whole."""
    buffer += xxh3_64_digest(buffer)


def open_message(message: memoryview) -> Message:
    """Check and open a whole message (GC-WIRE-11, GC-COMP-2).

    Raises:
        RemoteProtocolError: the check does not fit, or the envelope is not as specified (reason `damaged`).
    """
    covered = message[: len(message) - MESSAGE_CHECK_BYTES]
    if xxh3_64_digest(covered) != message[len(covered) :]:
        raise RemoteProtocolError("the message's check does not fit", reason="damaged")
    kind, compression, zeros, positions_bytes, first_record, record_count, plain_bytes = _ENVELOPE.unpack_from(covered)
    body_offset = ENVELOPE_BYTES + positions_bytes
    if zeros or body_offset > len(covered) or kind not in _KINDS or compression not in _COMPRESSIONS:
        raise RemoteProtocolError("the message's envelope is malformed", reason="damaged")
    try:
        runs = _decode_runs(covered[ENVELOPE_BYTES:body_offset])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"the message's positions are malformed: {error}", reason="damaged") from error
    if not all(_plausible(kind, run) for run in runs) or (
        kind == MessageKind.POSITIONS and (record_count or compression or body_offset != len(covered))
    ):
        raise RemoteProtocolError("the message's positions contradict themselves", reason="damaged")
    if plain_bytes <= len(covered) - body_offset if compression else plain_bytes:
        raise RemoteProtocolError("the message's body has another length than it says", reason="damaged")
    return Message(
        kind=MessageKind(kind),
        first_record=first_record,
        record_count=record_count,
        runs=runs,
        body=covered[body_offset:],
        compression=Compression(compression),
        plain_bytes=plain_bytes,
    )


_KINDS = frozenset(MessageKind)
_COMPRESSIONS = frozenset(Compression)


def _plausible(kind: int, run: Run) -> bool:
    if not 0 <= run.begun <= run.first or run.chain < 0:
        return False
    if kind == MessageKind.POSITIONS:
        return run.count == 0 and run.previous == run.first == run.last
    return run.count >= 1 and run.previous < run.first <= run.last and run.count <= run.last - run.first + 1
