"""By what two copies of one record are known to be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import msgspec
import xxhash

from gapconn.record import ORIGIN_HEADER, Header

Origin: TypeAlias = tuple[bytes, int]
"""Source partition (`cluster/topic/partition`) and offset in it."""

Fingerprint: TypeAlias = Callable[[str, bytes | None, bytes | None, "list[Header] | None"], bytes | None]
"""Of target topic, key, value and headers: 16 bytes that are the same for two copies; None where there is no id."""

_MAX_OFFSET = 2**63 - 1
_decode_json = msgspec.json.Decoder().decode
# Keys in order: two links may have written the fields of a table differently.
_encode_json = msgspec.json.Encoder(order="sorted").encode


def origins_of(headers: Iterable[list[Header] | None]) -> list[Origin | None]:
    """The origin id of each record, by its headers; None where there is none, or none that can be read.

    A record that crossed several gaps has several: the last one counts, which the nearest links added.
    """
    return [_origin_of(each) if each else None for each in headers]


def _origin_of(headers: list[Header]) -> Origin | None:
    for name, value in reversed(headers):
        if name == ORIGIN_HEADER:
            source, _, offset = (value or b"").rpartition(b"/")
            if offset.isdigit() and len(offset) <= 19 and source.count(b"/") >= 2 and int(offset) <= _MAX_OFFSET:
                return source, int(offset)
            return None
    return None


def make_fingerprint(identity: Literal["header", "field", "hash"], *, header: str = "", field: str = "") -> Fingerprint:
    """How a record's id is found.

    Args:
        identity: Value of a header, value of a field of the JSON object in the value, or hash of key and value.
        header: Name of the header.
        field: Path of the field: names with dots between them.
    """
    if identity == "header":
        return lambda topic, key, value, headers: _of_header(topic, headers, header)
    if identity == "field":
        path = field.split(".")
        return lambda topic, key, value, headers: _of_field(topic, value, path)
    return _of_content


def _digest(topic: str, *parts: bytes | None) -> bytes:
    digest = xxhash.xxh3_128()
    for part in (topic.encode(), *parts):
        # With its length in front: no two different lists of parts become the same bytes, and null is not empty.
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.digest()


def _of_header(topic: str, headers: list[Header] | None, wanted: str) -> bytes | None:
    for name, value in reversed(headers or ()):
        if name == wanted:
            return None if value is None else _digest(topic, value)
    return None


def _of_field(topic: str, value: bytes | None, path: list[str]) -> bytes | None:
    if value is None:
        return None
    try:
        found: Any = _decode_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return None if found is None else _digest(topic, _encode_json(found))


def _of_content(topic: str, key: bytes | None, value: bytes | None, headers: list[Header] | None) -> bytes | None:
    return _digest(topic, key, value)
