"""What is in `messages.json` and `cuts.json`: whole and damaged messages, and how messages are cut."""

from __future__ import annotations

import struct

import msgspec
from xxhash import xxh3_64_digest

from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.registry import Compression, MessageKind
from tests.protocol.frames import message_of
from tests.spec.vectors import CutOfMessage, Cuts, DamagedMessage, Messages, WholeMessage

PLAIN = b"the same " * 20
COMPRESSED = {
    Compression.ZSTD: bytes.fromhex("28b52ffd20b4850000487468652073616d652001002852e508"),
    Compression.LZ4: bytes.fromhex("9f7468652073616d65200900935073616d6520"),
}
"""`PLAIN`, compressed once and for all: another release of a library may find a shorter form."""

TOP_63, TOP_64 = 2**63 - 1, 2**64 - 1


def messages() -> Messages:
    """messages.json."""
    return Messages(
        whole=_whole(), damaged=[DamagedMessage(name, message.hex()) for name, message in _damaged().items()]
    )


def cuts() -> Cuts:
    """cuts.json: the formulas of delivery.md, worked out."""
    found = []
    for symbol_bytes_max in (64, 472, 1_416, 8_916, 65_451):
        edges = {n * symbol_bytes_max + d for n in (1, 2, 3, 255, 256, 1_000) for d in (-1, 0, 1)}
        for length in sorted({33, 34, 100, 65_536, 1_000_000, 16 << 20, *edges}):
            at_least = -(-length // symbol_bytes_max)
            symbol_bytes = -(-length // at_least)
            found.append(CutOfMessage(length, symbol_bytes_max, symbol_bytes, -(-length // symbol_bytes)))
    return Cuts(found)


def _whole() -> list[WholeMessage]:
    chain = Run("orders", 0, 9, 10, 14, 5, 6, True, 0)
    holes = Run("orders", 3, -1, 2**40, TOP_63, 2, 2**40, False, 3)
    told = [Run("orders", 0, 14, 14, 14, 0, 6, True, 0), Run("größer", 7, 0, 0, 0, 0, 0, False, 2)]
    extreme = [Run("s", 2**31 - 1, TOP_63 - 1, TOP_63, TOP_63, 1, TOP_63, True, TOP_64)]
    return [
        _batch("empty", b"", [], record_count=0),
        _batch("a body and no positions", b"a body", [], first_record=30),
        _batch("positions of two stream partitions", bytes(range(64)), [chain, holes], first_record=9, record_count=7),
        _batch("a stream without a name, and its first record", b"x", [Run("", 0, -1, 0, 0, 1, 0, False, 0)]),
        _batch("a chain that continues sessions from one on", b"x", [Run("orders", 0, -1, 0, 0, 1, 0, TOP_64, 0)]),
        _batch("largest numbers", b"x", extreme, first_record=TOP_64, record_count=2**32 - 1),
        *map(_compressed, (Compression.ZSTD, Compression.LZ4)),
        _positions("positions only", told),
        _positions("positions only, and none", []),
        _repair("a repair", b"records", [Span("orders", 0, 15, 19, 4), Span("größer", 7, 0, 0, 0)]),
        _repair("a repair of which nothing is left", b"", [Span("s", 2**31 - 1, 0, TOP_63, 0, "deleted")]),
        _repair("a repair that is delivered again", b"x", [Span("", 0, TOP_63, TOP_63, 1, "", True)]),
        _compressed_repair("a compressed repair", [Span("orders", 0, 15, 19, 4)]),
    ]


def _batch(name: str, body: bytes, runs: list[Run], *, first_record: int = 0, record_count: int = 1) -> WholeMessage:
    message = message_of(body, runs=runs, first_record=first_record, record_count=record_count)
    fields = _fields(runs)
    return WholeMessage(
        name, message.hex(), "batch", first_record, record_count, fields, [], body.hex(), "none", body.hex()
    )


def _compressed(compression: Compression) -> WholeMessage:
    plain = PLAIN.hex()
    body = COMPRESSED[compression]
    message = message_of(body, compression=compression, plain_bytes=len(PLAIN))
    name = compression.name.lower()
    return WholeMessage(f"compressed by {name}", message.hex(), "batch", 0, 1, [], [], body.hex(), name, plain)


def _positions(name: str, runs: list[Run]) -> WholeMessage:
    message = message_of(runs=runs, first_record=37, record_count=0, kind=MessageKind.POSITIONS)
    return WholeMessage(name, message.hex(), "positions", 37, 0, _fields(runs), [], "", "none", "")


def _repair(name: str, body: bytes, spans: list[Span]) -> WholeMessage:
    message = message_of(body, runs=spans, first_record=37, record_count=0, kind=MessageKind.REPAIR)
    return WholeMessage(name, message.hex(), "repair", 37, 0, [], _fields_of(spans), body.hex(), "none", body.hex())


def _compressed_repair(name: str, spans: list[Span]) -> WholeMessage:
    body = COMPRESSED[Compression.ZSTD]
    message = message_of(
        body,
        runs=spans,
        first_record=37,
        record_count=0,
        kind=MessageKind.REPAIR,
        compression=Compression.ZSTD,
        plain_bytes=len(PLAIN),
    )
    return WholeMessage(name, message.hex(), "repair", 37, 0, [], _fields_of(spans), body.hex(), "zstd", PLAIN.hex())


def _fields_of(spans: list[Span]) -> list[tuple[str, int, int, int, int, str, bool]]:
    return [(s.stream, s.partition, s.first, s.last, s.count, s.gone, s.again) for s in spans]


def _fields(runs: list[Run]) -> list[tuple[str, int, int, int, int, int, int, bool | int, int]]:
    return [(r.stream, r.partition, r.previous, r.first, r.last, r.count, r.begun, r.continues, r.chain) for r in runs]


def _damaged() -> dict[str, bytes]:
    good = message_of(b"a body", runs=[Run("s", 0, 3, 4, 6, 3, 4, True, 0)], record_count=3)
    positions = good[24:-14]
    return {
        "a flipped bit in the body": _flipped(good, len(good) - 10),
        "a flipped bit in the check": _flipped(good, len(good) - 1),
        "a flipped bit in the first record": _flipped(good, 10),
        "kind 0": _raw(kind=0),
        "kind 4": _raw(kind=4),
        "reserved field, first byte": _raw(zeros=1 << 8),
        "reserved field, last byte": _raw(zeros=1),
        "an unknown compression": _raw(zeros=3 << 16, plain_bytes=100),
        "a plain body with a plain length": _raw(plain_bytes=6),
        "a compressed body without a plain length": _raw(zeros=1 << 16),
        "a compressed body that is as long as its plain length": _raw(zeros=1 << 16, plain_bytes=6),
        "positions only, compressed": _raw(kind=2, zeros=1 << 16, plain_bytes=100, record_count=0, body=b""),
        "positions longer than the message": _raw(positions, positions_bytes=len(positions) + 100),
        "positions longer than any message": _raw(positions, positions_bytes=2**32 - 1),
        "positions of no bytes": _raw(b""),
        "positions cut short": _raw(positions[:-1]),
        "positions with a byte too many": _raw(positions + b"\xc0"),
        "positions that are not MessagePack": _raw(b"\xc1"),
        "positions that are a map": _raw(b"\x80"),
        "positions that claim 2^32 - 1 runs": _raw(b"\xdd\xff\xff\xff\xff"),
        "positions nested ten thousand deep": _raw(b"\x91" * 10_000),
        "a run of six fields": _raw(msgspec.msgpack.encode([("s", 0, 3, 4, 6, 3)])),
        "a run of seven fields": _raw(msgspec.msgpack.encode([("s", 0, 3, 4, 6, 3, 0)])),
        "a run of eight fields": _raw(msgspec.msgpack.encode([("s", 0, 3, 4, 6, 3, 0, False)])),
        "a run of ten fields": _raw(msgspec.msgpack.encode([("s", 0, 3, 4, 6, 3, 0, False, 0, 0)])),
        "a stream that is not text": _run(5, 0, 3, 4, 6, 3),
        "a stream that is not UTF-8": _raw(b"\x91\x99\xa1\xff\x00\x03\x04\x06\x03\x00\xc2\x00"),
        "a position that is not a whole number": _run("s", 0, 3, 4.5, 6, 3),
        "a chain that begins behind its run": _run("s", 0, 3, 4, 6, 3, begun=5),
        "a chain that begins before position 0": _run("s", 0, 3, 4, 6, 3, begun=-1),
        "a chain that began before message 0": _run("s", 0, 3, 4, 6, 3, chain=-1),
        "a chain that neither continues nor does not": _run("s", 0, 3, 4, 6, 3, continues=0),
        "a previous position of -2": _run("s", 0, -2, 4, 6, 3),
        "a negative position": _run("s", 0, -1, -1, 6, 3),
        "a run that ends before it begins": _run("s", 0, 3, 6, 4, 1),
        "a run that begins at the position before it": _run("s", 0, 4, 4, 6, 3),
        "a run of no records": _run("s", 0, 3, 4, 6, 0),
        "a run of more records than positions": _run("s", 0, 3, 4, 6, 4),
        "positions only, with records in a run": _run("s", 0, 6, 6, 6, 1, kind=2, record_count=0, body=b""),
        "positions only, first and last differ": _run("s", 0, 5, 5, 6, 0, kind=2, record_count=0, body=b""),
        "positions only, previous and first differ": _run("s", 0, 5, 6, 6, 0, kind=2, record_count=0, body=b""),
        "positions only, with a body": _run("s", 0, 6, 6, 6, 0, kind=2, record_count=0),
        "positions only, with a record count": _run("s", 0, 6, 6, 6, 0, kind=2, body=b""),
        "a repair of nothing": _raw(b"\x90", kind=3, record_count=0, body=b""),
        "a repair with a record count": _span("s", 0, 4, 6, 3, "", False, record_count=3),
        "a repair with records and no body": _span("s", 0, 4, 6, 3, "", False, body=b""),
        "a repair with a body and no records": _span("s", 0, 4, 6, 0, "", False),
        "a repair without a body, compressed": _raw(
            msgspec.msgpack.encode([("s", 0, 4, 6, 0, "", False)]),
            kind=3,
            zeros=1 << 16,
            plain_bytes=100,
            record_count=0,
            body=b"",
        ),
        "a repair that ends before it begins": _span("s", 0, 6, 4, 1, "", False),
        "a repair of more records than positions": _span("s", 0, 4, 6, 4, "", False),
        "a repair with records that are gone": _span("s", 0, 4, 6, 3, "deleted", False),
        "a repair with too long a reason": _span("s", 0, 4, 6, 0, "x" * 201, False, body=b""),
        "a repair of negative positions": _span("s", 0, -1, 6, 3, "", False),
        "a repair with a run in place of a span": _run("s", 0, 3, 4, 6, 3, kind=3, record_count=0),
        "a repair of which it is not known whether it is delivered again": _span("s", 0, 4, 6, 3, "", 0),
    }


def _run(
    *fields: object,
    begun: int = 0,
    continues: object = False,
    chain: int = 0,
    kind: int = 1,
    record_count: int = 3,
    body: bytes = b"a body",
) -> bytes:
    positions = msgspec.msgpack.encode([(*fields, begun, continues, chain)])
    return _raw(positions, kind=kind, record_count=record_count, body=body)


def _span(*fields: object, record_count: int = 0, body: bytes = b"a body") -> bytes:
    return _raw(msgspec.msgpack.encode([fields]), kind=3, record_count=record_count, body=body)


def _raw(
    positions: bytes = b"\x90",
    *,
    kind: int = 1,
    zeros: int = 0,
    positions_bytes: int | None = None,
    record_count: int = 3,
    plain_bytes: int = 0,
    body: bytes = b"a body",
) -> bytes:
    """A message with a check that fits, whatever is in it."""
    length = len(positions) if positions_bytes is None else positions_bytes
    covered = struct.pack(">IIQII", kind << 24 | zeros, length, 0, record_count, plain_bytes) + positions + body
    return covered + xxh3_64_digest(covered)


def _flipped(message: bytes, offset: int) -> bytes:
    return message[:offset] + bytes([message[offset] ^ 1]) + message[offset + 1 :]
