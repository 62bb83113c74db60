"""The list of what is missing, on its way from the egress to the source side: as JSON, or as lines that people type.

A line of the text form, which a QR code has too:

    3: K7Q2MN 0ZV8XK C4WJ5T 9RGE1B  H7P
    │  └── 15 bytes in Crockford's base 32, which has no I, L, O and U ──┘  └ check

The check is 15 bits of a CRC over the line's number and its characters: it finds every wrong character, and every two
that changed places, so a mistake is named with its line. Upper and lower case, spaces and hyphens do not matter, O is
read as 0, I and L as 1. The bytes are a MessagePack list of the ranges, deflated where that is shorter; their length is
in front of them, and a CRC-32 of the whole behind.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs
import msgspec

from gapconn.errors import GapconnError
from gapconn.journal import Entry, Place
from gapconn.protocol.envelope import Span
from gapconn.ranges import Range, RangeSet
from gapconn.store.journal import facts

FORMAT: Final = "gapconn-gaps"
VERSION: Final = 1
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LINE_BYTES: Final = 15
LINE_CHARACTERS: Final = LINE_BYTES * 8 // 5
GROUP_CHARACTERS: Final = 6
CHECK_CHARACTERS: Final = 3
PLAIN_BYTES_MAX: Final = 16 << 20
"""What a deflated list may inflate to."""

_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_LINE: Final = re.compile(r"\s*(\d+)\s*:(.*)")


class BundleError(GapconnError):
    """A list of missing records that cannot be read.

    Attributes:
        problems: What is wrong with it, a sentence each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class Lost(NamedTuple):
    """Messages of a session that are missing."""

    epoch: int
    first: int
    last: int
    """Included."""


@attrs.frozen(kw_only=True)
class Bundle:
    """What is missing on a link."""

    link: str
    link_id: int
    spans: Sequence[Span]
    """By stream, partition and position."""
    messages: Sequence[Lost] = ()
    """By session and number: for a source side that sends messages again, and not records by their position."""


def bundle_of(link: str, link_id: int, entries: Iterable[Entry]) -> Bundle:
    """All positions of records, and messages, that these entries have open.

    Bytes of streams are left out, nobody can ask for them.
    """
    entries = [entry for entry in entries if entry.open]
    places: dict[Place, RangeSet] = {}
    for entry in entries:
        for place, ranges in entry.missing.items():
            for first, last in ranges:
                places.setdefault(place, RangeSet()).add(first, last)
    spans = [
        Span(stream, partition, first, last)
        for stream, partition in sorted((s, p) for s, p in places if p is not None)
        for first, last in places[stream, partition]
    ]
    sessions: dict[int, RangeSet] = {}
    for entry in entries:
        for first, last in entry.messages_missing:
            sessions.setdefault(entry.epoch, RangeSet()).add(first, last)
    messages = tuple(Lost(epoch, *each) for epoch in sorted(sessions) for each in sessions[epoch])
    return Bundle(link=link, link_id=link_id, spans=spans, messages=messages)


# JSON


def as_json(bundle: Bundle, entries: Iterable[Entry]) -> str:
    """The bundle with everything that is known of its entries."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "link": bundle.link,
        "link_id": bundle.link_id,
        "exported_ms": time.time_ns() // 1_000_000,
        "missing": [[span.stream, span.partition, span.first, span.last] for span in bundle.spans],
        "missing_messages": [list(each) for each in bundle.messages],
        "entries": [facts(entry) for entry in entries],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def read_bundle(text: str) -> Bundle:
    """The bundle that `as_json`, `as_lines` or `as_code` wrote.

    Raises:
        BundleError: it is none, or was changed on the way.
    """
    return _of_json(text) if text.lstrip().startswith("{") else _of_lines(text)


def _of_json(text: str) -> Bundle:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BundleError([f"not JSON: {error}"]) from error
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise BundleError([f"not a list of missing records of version {VERSION}, as gapconn gaps export writes it"])
    try:
        return _checked(content["link"], content["link_id"], content["missing"], content.get("missing_messages", []))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError([f"the list is damaged: {error!r}"]) from error


def _checked(link: Any, link_id: Any, missing: Any, messages: Any) -> Bundle:
    lost = tuple(Lost(*(int(number) for number in each)) for each in messages)
    spans = [msgspec.convert(each, Span) for each in missing]
    if not isinstance(link, str) or not isinstance(link_id, int):
        raise ValueError("the link is not named")
    wrong = next((span for span in spans if span.first > span.last or span.count or span.gone), None)
    if wrong is not None:
        raise ValueError(f"not a range: {wrong}")
    if any(each.epoch < 1 or not 0 <= each.first <= each.last for each in lost):
        raise ValueError("not a range of messages")
    return Bundle(link=link, link_id=link_id, spans=spans, messages=lost)


# Lines


def as_lines(bundle: Bundle) -> list[str]:
    """The bundle as numbered lines, each with its check."""
    return [
        f"{number}: {' '.join(_grouped(characters[:-CHECK_CHARACTERS]))}  {characters[-CHECK_CHARACTERS:]}"
        for number, characters in enumerate(_coded(bundle), 1)
    ]


def as_code(bundle: Bundle) -> str:
    """The same in one line, with only such characters as a QR code holds best."""
    return "/".join(f"{number}:{characters}" for number, characters in enumerate(_coded(bundle), 1))


def _grouped(characters: str) -> Iterable[str]:
    return (characters[i : i + GROUP_CHARACTERS] for i in range(0, len(characters), GROUP_CHARACTERS))


def _coded(bundle: Bundle) -> list[str]:
    content = _packed(bundle)
    whole = len(content).to_bytes(4, "big") + content
    whole += zlib.crc32(whole).to_bytes(4, "big")
    lines = []
    for number, start in enumerate(range(0, len(whole), LINE_BYTES), 1):
        characters = _base32(whole[start : start + LINE_BYTES])
        lines.append(characters + _check(number, characters))
    return lines


def _packed(bundle: Bundle) -> bytes:
    """Numbers as the differences to those before them; the first byte tells whether it is deflated."""
    streams: list[Any] = []
    position = 0
    place: tuple[str, int] | None = None
    for span in bundle.spans:
        if place is None or span.stream != place[0]:
            streams.append([span.stream, []])
        if (span.stream, span.partition) != place:
            place, position = (span.stream, span.partition), 0
            streams[-1][1].append([span.partition, []])
        streams[-1][1][-1][1] += [span.first - position, span.last - span.first]
        position = span.last
    sessions: dict[int, list[int]] = {}
    for lost in bundle.messages:
        numbers = sessions.setdefault(lost.epoch, [])
        begin = sum(numbers)
        numbers += [lost.first - begin, lost.last - lost.first]
    content: list[Any] = [VERSION, bundle.link, bundle.link_id, streams]
    plain = msgspec.msgpack.encode([*content, list(sessions.items())] if sessions else content)
    deflated = zlib.compress(plain, 9)
    return b"\1" + deflated if len(deflated) < len(plain) else b"\0" + plain


def _unpacked(content: bytes) -> Bundle:
    plain = content[1:]
    if content[:1] == b"\1":
        inflater = zlib.decompressobj()
        plain = inflater.decompress(plain, PLAIN_BYTES_MAX)
        if not inflater.eof:
            raise ValueError("too long")
    version, link, link_id, streams, *more = msgspec.msgpack.decode(plain)
    if version != VERSION:
        raise ValueError(f"written by another version of gapconn ({version})")
    missing = []
    for stream, partitions in streams:
        for partition, numbers in partitions:
            for first, last in _undone(numbers):
                missing.append([stream, partition, first, last])
    messages = [
        [epoch, first, last] for epoch, numbers in (more[0] if more else ()) for first, last in _undone(numbers)
    ]
    return _checked(link, link_id, missing, messages)


def _undone(numbers: Sequence[int]) -> Iterable[Range]:
    """Ranges of the differences to what was before: to the end of the range before, and to the begin of this one."""
    position = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        yield position + gap, position + gap + length
        position += gap + length


def _of_lines(text: str) -> Bundle:
    lines, problems = _read_lines(text)
    if not lines and not problems:
        raise BundleError(["no list of missing records: there is no line that begins with a number and a colon"])
    count = None
    if 1 in lines:
        count = -(-(int.from_bytes(lines[1][:4], "big") + 8) // LINE_BYTES)
    missing = [number for number in range(1, (count or max(lines, default=0)) + 1) if number not in lines]
    named = {problem.partition(":")[0] for problem in problems}
    problems += [f"line {number}: it is missing" for number in missing if f"line {number}" not in named]
    if problems or count is None:
        raise BundleError(problems or ["line 1: it is missing"])
    whole = b"".join(lines[number] for number in range(1, count + 1))
    length = int.from_bytes(whole[:4], "big")
    whole = whole[: length + 8]
    if zlib.crc32(whole[:-4]) != int.from_bytes(whole[-4:], "big"):
        raise BundleError(["each line fits, but not all together: are they of one list?"])
    try:
        return _unpacked(whole[4:-4])
    except (ValueError, TypeError, KeyError, zlib.error, msgspec.MsgspecError) as error:
        raise BundleError([f"the list cannot be read: {error}"]) from error


def _read_lines(text: str) -> tuple[dict[int, bytes], list[str]]:
    """The bytes of each line that fits, by number; and what is wrong with the others."""
    lines: dict[int, bytes] = {}
    problems = []
    for line in re.split(r"[\n/]", text):
        found = _LINE.fullmatch(line)
        if found is None:
            if re.search(r"\w", line) and not line.strip().lower().startswith("gapconn"):
                problems.append(f"{line.strip()!r}: a line begins with its number and a colon")
            continue
        number, characters = int(found[1]), re.sub(r"[\s-]", "", found[2]).upper()
        strange = sorted({character for character in characters if character not in _VALUES})
        characters = "".join(ALPHABET[_VALUES[character]] for character in characters if character in _VALUES)
        data, check = characters[:-CHECK_CHARACTERS], characters[-CHECK_CHARACTERS:]
        if strange:
            problems.append(f"line {number}: {' and '.join(map(repr, strange))} cannot be in it")
        elif check != _check(number, data) or not data:
            problems.append(f"line {number}: its check does not fit; compare it character by character")
        elif lines.setdefault(number, _bytes_of(data)) != _bytes_of(data):
            problems.append(f"line {number}: it is there twice, and differs")
    return lines, problems


# Characters


def _base32(data: bytes) -> str:
    bits = len(data) * 8
    count = -(-bits // 5)
    value = int.from_bytes(data, "big") << (5 * count - bits)
    return "".join(ALPHABET[(value >> (5 * (count - 1 - i))) & 31] for i in range(count))


def _bytes_of(characters: str) -> bytes:
    value = 0
    for character in characters:
        value = value << 5 | _VALUES[character]
    size = len(characters) * 5 // 8
    return (value >> (5 * len(characters) - 8 * size)).to_bytes(size, "big")


def _check(number: int, characters: str) -> str:
    """15 bits of a CRC (polynomial 0x4599, that of CAN) over the line's number and the values of its characters."""
    bits = f"{number:032b}" + "".join(f"{_VALUES[character]:05b}" for character in characters)
    register = 0x7FFF
    for bit in bits:
        top = register >> 14
        register = (register << 1) & 0x7FFF
        if top != int(bit):
            register ^= 0x4599
    return _base32((register << 1).to_bytes(2, "big"))[:CHECK_CHARACTERS]


# For people and programs


def rows_of(entries: Iterable[Entry]) -> list[Mapping[str, Any]]:
    """A row for each range that entries have; one for an entry without any. For CSV."""
    rows: list[Mapping[str, Any]] = []
    for entry in entries:
        about = {
            "number": entry.number,
            "state": entry.outcome,
            "cause": entry.cause,
            "at_ms": entry.at_ms,
            "closed_ms": entry.closed_ms,
            "epoch": entry.epoch,
            "records": entry.records,
            "reason": entry.reason,
        }
        ranges = [{"kind": "message", "first": first, "last": last} for first, last in entry.messages]
        for kind, places in (("missing", entry.missing), ("repaired", entry.repaired), ("gone", entry.gone)):
            ranges += [
                {"kind": kind, "stream": stream, "partition": partition, "first": first, "last": last}
                for (stream, partition), of_place in places.items()
                for first, last in of_place
            ]
        rows += [{**about, **each} for each in ranges] or [about]
    return rows


COLUMNS: Final = (
    "number", "state", "cause", "at_ms", "closed_ms", "epoch", "records", "reason", "kind", "stream", "partition",
    "first", "last",
)  # fmt: skip
"""Of the CSV form."""
