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
    continues: bool | Annotated[int, msgspec.Meta(ge=1)] = False
    """Whether the chain goes on where an earlier session of the link ended; filled in by the sending half. A number is
    the epoch of the first session that it may be, which the source says where nothing was acknowledged yet."""
    chain: int = -1
    """Number of the message with which this chain began; filled in by the sending half."""


class Span(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A stretch of positions of one stream partition that a `repair` message settles (spec/repair.md)."""

    stream: str
    partition: int
    first: Annotated[int, msgspec.Meta(ge=0)]
    last: Annotated[int, msgspec.Meta(ge=0)]
    """Included."""
    count: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Records of it in the body: all that the source has between `first` and `last`."""
    gone: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Why the source has them no more; empty if it has."""
    again: bool = False
    """Deliver them also where the egress does not miss them."""


class Copy(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Messages of a session that a `copy` message settles (spec/repair.md)."""

    epoch: Annotated[int, msgspec.Meta(ge=1)]
    first: Annotated[int, msgspec.Meta(ge=0)]
    last: Annotated[int, msgspec.Meta(ge=0)]
    """Included."""
    gone: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Why the sender has them no more; empty if the body is the message."""


_encode_runs = msgspec.msgpack.Encoder().encode
_decode_runs = msgspec.msgpack.Decoder(list[Run]).decode
_decode_spans = msgspec.msgpack.Decoder(list[Span]).decode
_decode_copies = msgspec.msgpack.Decoder(list[Copy]).decode


@attrs.frozen(kw_only=True)
class Message:
    """A message that was checked and opened."""

    kind: MessageKind
    first_record: int
    record_count: int
    runs: list[Run]
    """Empty for a repair and a copy."""
    spans: list[Span]
    """What a repair settles; empty for all other kinds."""
    copies: list[Copy]
    """What a copy settles; empty for all other kinds."""
    copied: Message | None
    """The message in the body of a copy."""
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
    runs: list[Run] | list[Span] | list[Copy],
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


def open_message(message: memoryview, *, nested: bool = False) -> Message:
    """Check and open a whole message (GC-WIRE-11, GC-COMP-2).

    Args:
        message: All of it.
        nested: It is in a copy: if it is one itself, what is in it is not looked at.

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
    runs: list[Run] = []
    spans: list[Span] = []
    copies: list[Copy] = []
    try:
        if kind == MessageKind.REPAIR:
            spans = _decode_spans(covered[ENVELOPE_BYTES:body_offset])
        elif kind == MessageKind.COPY:
            copies = _decode_copies(covered[ENVELOPE_BYTES:body_offset])
        else:
            runs = _decode_runs(covered[ENVELOPE_BYTES:body_offset])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"the message's positions are malformed: {error}", reason="damaged") from error
    body_bytes = len(covered) - body_offset
    if (
        not all(_plausible(kind, run) for run in runs)
        or (kind == MessageKind.POSITIONS and (record_count or compression or body_bytes))
        or (kind == MessageKind.REPAIR and (record_count or not _plausible_repair(spans, body_bytes, compression)))
        or (kind == MessageKind.COPY and (record_count or compression or not _plausible_copies(copies, body_bytes)))
    ):
        raise RemoteProtocolError("the message's positions contradict themselves", reason="damaged")
    if plain_bytes <= body_bytes if compression else plain_bytes:
        raise RemoteProtocolError("the message's body has another length than it says", reason="damaged")
    return Message(
        kind=MessageKind(kind),
        first_record=first_record,
        record_count=record_count,
        runs=runs,
        spans=spans,
        copies=copies,
        copied=open_message(covered[body_offset:], nested=True) if copies and body_bytes and not nested else None,
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


def _plausible_repair(spans: list[Span], body_bytes: int, compression: int) -> bool:
    """GC-RPR-3."""
    return (
        bool(spans)
        and all(_plausible_span(span) for span in spans)
        and ((body_bytes > 0) == any(span.count for span in spans))
        and (body_bytes > 0 or not compression)
    )


def _plausible_span(span: Span) -> bool:
    return span.first <= span.last and span.count <= (0 if span.gone else span.last - span.first + 1)


def _plausible_copies(copies: list[Copy], body_bytes: int) -> bool:
    """GC-RPR-8."""
    if body_bytes:
        return len(copies) == 1 and copies[0].first == copies[0].last and not copies[0].gone
    return bool(copies) and all(copy.first <= copy.last and copy.gone for copy in copies)
