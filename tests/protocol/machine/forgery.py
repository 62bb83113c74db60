"""What the gap does to datagrams, from plain numbers: strokes on those that pass, and datagrams that nobody sent so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
from xxhash import xxh3_64_digest

from gapconn.testing.memory_gap import Fate
from tests.protocol.machine.oracle import DATA, Announcement, Datagram

Stroke: TypeAlias = list[Any]
"""What happens to neighbouring datagrams: `[kind, where it begins in thousandths, how many, how much]`."""

STROKES = ("drop", "duplicate", "delay", "flip", "truncate", "spoil", "contradict")

CHANGED_FIELDS: dict[str, dict[str, int]] = {
    "other magic": {"magic": 0x4744},
    "other version": {"version": 2},
    "sealed": {"flags": 1},
    "unknown type": {"type": 9},
    "unknown flag": {"flags": 4},
    "key without seal": {"key_id": 1},
    "epoch 0": {"epoch": 0},
    "sequence": {"sequence": 2**63},
}
CHANGED_SYMBOL_FIELDS: dict[str, dict[str, int]] = {
    "no blocks": {"blocks": 0},
    "more blocks than symbols": {"blocks": 2**16 - 1},
    "too many repair symbols": {"repair_symbols": 255},
    "symbol behind the last": {"symbol": 2**32 - 1},
    "short message": {"message_length": 32},
    "message above sequence": {"message": 2**62},
    "symbol length": {"symbol_length": 1},
}
CHANGED_ANNOUNCEMENTS: dict[str, dict[str, Any]] = {
    "no heartbeat": {"heartbeat_interval": 0},
    "short timeout": {"interruption_timeout": 1},
    "phase": {"phase": 9},
    "previous epoch": {"previous_epoch": 2**64 - 1},
    "messages above sequence": {"messages_sent": 2**40},
    "reserved field": {"reserved": bytes(11) + b"\1"},
}
INJECTIONS = ("foreign", "noise", *CHANGED_FIELDS, *CHANGED_SYMBOL_FIELDS, *CHANGED_ANNOUNCEMENTS)


def fate_of(kind: str, amount: int) -> Fate:
    """The fate of each datagram under a stroke that damages, loses, or delays it."""
    match kind:
        case "drop":
            return Fate(copies=0)
        case "duplicate":
            return Fate(copies=2 + amount % 2)
        case "delay":
            return Fate(delay_s=(1 + amount % 64) / 64)
        case "flip":
            # Half of them in front, where the fields are that tell how much of the rest may be believed.
            return Fate(flipped_bits=(amount % 64 if amount % 2 else amount * 7,))
        case "truncate":
            return Fate(kept_bytes=amount % 128)
    raise ValueError(kind)


def forged(kind: str, raw: bytes, amount: int) -> bytes:
    """A symbol that is wrong under a check that fits, as from an ingress with broken memory; announcements pass."""
    datagram = Datagram.read(raw)
    if datagram.type != DATA:
        return raw
    if kind == "contradict":
        return attrs.evolve(datagram, message_length=datagram.message_length + 1).with_payload(raw[48:-8])
    payload = bytearray(raw[48:-8])
    payload[amount % len(payload)] ^= 1
    return datagram.with_payload(bytes(payload))


def injected(kind: str, overheard: Sequence[bytes], where: int) -> bytes | None:
    """A datagram made from one of those overheard, or None if there is none to make it from.

    All but noise have a check that fits, so that each gets as far as the rule that it breaks.
    """
    if kind == "noise":
        return b"".join(xxh3_64_digest(f"{where} {i}".encode()) for i in range(64))[: where % 320]
    wanted = [raw for raw in overheard if _suits(kind, raw)]
    if not wanted:
        return None
    raw = wanted[where * len(wanted) // 1_000]
    datagram, payload = Datagram.read(raw), raw[48:-8]
    if kind == "foreign":
        return attrs.evolve(datagram, link_id=datagram.link_id + 1 + where % 2).with_payload(payload)
    if kind in CHANGED_ANNOUNCEMENTS:
        said = attrs.evolve(Announcement.read(payload), **CHANGED_ANNOUNCEMENTS[kind])
        return datagram.with_payload(said.pack())
    changes = CHANGED_FIELDS.get(kind) or CHANGED_SYMBOL_FIELDS[kind]
    return attrs.evolve(datagram, **changes).with_payload(payload)


def _suits(kind: str, raw: bytes) -> bool:
    if kind in CHANGED_SYMBOL_FIELDS:
        return Datagram.read(raw).type == DATA
    return kind not in CHANGED_ANNOUNCEMENTS or Datagram.read(raw).type != DATA
