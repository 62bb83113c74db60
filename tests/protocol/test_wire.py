"""Header, announcement, slabs: the bytes are where spec/wire.md says, and the views are of the same bytes."""

from __future__ import annotations

import re

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from gapconn.protocol.registry import DatagramType
from gapconn.protocol.wire import (
    OVERHEAD_BYTES,
    ROWS_MAX,
    SEQUENCE_LIMIT,
    SLAB_BYTES,
    Announcement,
    Burst,
    Header,
    Slab,
    burst_of,
    encode_datagram,
    rows_per_burst,
)
from tests.protocol.frames import ANNOUNCEMENT, Session, burst, split
from tests.spec.requirements import SPEC

HEADER_FIELDS = {
    "Magic": "magic",
    "Version": "version",
    "Type": "type",
    "Flags": "flags",
    "Symbol Length": "symbol_bytes",
    "Link ID": "link_id",
    "Blocks": "blocks",
    "Repair Symbols": "repair_symbols",
    "Key ID": "key_id",
    "Epoch": "epoch",
    "Sequence": "sequence",
    "Message": "message",
    "Message Length": "message_bytes",
    "Symbol": "symbol",
}
ANNOUNCEMENT_FIELDS = {
    "Previous Epoch": "previous_epoch",
    "Messages Sent": "messages_sent",
    "Records Sent": "records_sent",
    "Records Filtered": "records_filtered",
    "Heartbeat Interval": "heartbeat_interval_ms",
    "Interruption Timeout": "interruption_timeout_ms",
    "Message Length Max": "message_bytes_max",
    "MTU": "mtu_bytes",
    "Symbol Length Max": "symbol_bytes_max",
    "Security Mode": "security_mode",
    "FEC Source Symbols": "fec_source_symbols",
    "FEC Repair Symbols": "fec_repair_symbols",
    "Phase": "phase",
    "Reserved": "reserved",
}


def printed_layout(name: str) -> dict[str, int]:
    """The fields of a layout in wire.md, in order, with their bits; those of variable length are left out."""
    block = re.search(rf"^{name} {{(.*?)^}}", (SPEC / "wire.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    return {field: int(bits) for field, bits in re.findall(r"^  ([\w ]+) \((\d+)\)", block[1], re.MULTILINE)}


def layout_cases() -> list[tuple[type[Header] | type[Announcement], str, int, int, int]]:
    """(class, attribute, offset in bytes, bytes, bytes of all) as wire.md has it."""
    cases: list[tuple[type[Header] | type[Announcement], str, int, int, int]] = []
    for cls, name, attributes in (
        (Header, "Datagram", HEADER_FIELDS),
        (Announcement, "Announcement", ANNOUNCEMENT_FIELDS),
    ):
        fields = printed_layout(name)
        fields.pop("Check", None)
        assert list(fields) == list(attributes)
        total = sum(fields.values()) // 8
        offset = 0
        for field, bits in fields.items():
            cases.append((cls, attributes[field], offset, bits // 8, total))
            offset += bits // 8
    return cases


@pytest.mark.parametrize(("cls", "name", "offset", "size", "total"), layout_cases())
@pytest.mark.req("GC-WIRE-1")
def test_each_field_is_where_the_specification_says(
    cls: type[Header] | type[Announcement], name: str, offset: int, size: int, total: int
) -> None:
    zero = dict.fromkeys(attrs.fields_dict(cls), 0)
    value = int.from_bytes(range(1, size + 1), "big")
    packed = cls(**(zero | {name: value})).pack()
    assert packed == bytes(offset) + value.to_bytes(size, "big") + bytes(total - offset - size)
    assert getattr(cls.unpack(packed), name) == value


def any_fields(cls: type) -> st.SearchStrategy[dict[str, int]]:
    sizes = {name: size for owner, name, _, size, _ in layout_cases() if owner is cls}
    return st.fixed_dictionaries({name: st.integers(0, 2 ** (8 * size) - 1) for name, size in sizes.items()})


@given(any_fields(Header), st.integers(0, 5))
@settings(deadline=None)
def test_a_header_survives_packing(fields: dict[str, int], offset: int) -> None:
    header = Header(**fields)
    assert Header.unpack(bytes(offset) + header.pack() + b"more", offset) == header


@given(any_fields(Announcement))
@settings(deadline=None)
def test_an_announcement_survives_packing(fields: dict[str, int]) -> None:
    announcement = Announcement(**fields)
    assert Announcement.unpack(announcement.pack()) == announcement


@given(st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-WIRE-7")
def test_a_run_is_well_formed_if_each_of_it_is(data: st.DataObject) -> None:
    """The check of a whole run at once is a short cut for the check of each of its headers."""
    near_limit = st.integers(SEQUENCE_LIMIT - 12, SEQUENCE_LIMIT + 2)
    header = Header(
        type=DatagramType.DATA,
        link_id=1,
        epoch=data.draw(st.integers(0, 1)),
        sequence=data.draw(st.one_of(st.integers(0, 12), near_limit)),
        message=data.draw(st.integers(0, 12)),
        symbol_bytes=data.draw(st.integers(0, 3)),
        message_bytes=data.draw(st.integers(30, 40)),
        blocks=data.draw(st.integers(0, 12)),
        repair_symbols=data.draw(st.one_of(st.integers(0, 3), st.integers(230, 255))),
        symbol=data.draw(st.integers(0, 40)),
    )
    count = data.draw(st.integers(1, 8))
    each = [
        attrs.evolve(header, sequence=header.sequence + i, symbol=header.symbol + i).well_formed(2)
        for i in range(count)
    ]
    assert header.well_formed(2, count) is all(each)


def test_a_layout_shows_the_bytes_of_its_slab() -> None:
    session = Session(symbol_bytes=70, sequence=2**40)
    datagrams = session.message(bytes(range(200)))
    rows_of = burst(*datagrams, offset=3)
    rows = rows_of.slab.layout(rows_of.datagram_bytes, len(datagrams), 3)
    for i, datagram in enumerate(datagrams):
        header = Header.unpack(datagram)
        assert bytes(rows.matrix[i]) == datagram
        assert bytes(rows.header_bytes[i]) == datagram[:48]
        assert bytes(rows.payloads[i]) == datagram[48:-8]
        assert bytes(rows.covered[i]) == datagram[:-8]
        assert (rows.sequences[i], rows.symbols[i]) == (header.sequence, header.symbol)
        assert rows.last_words[i] == header.message_bytes << 32 | header.symbol
        assert rows.checks[i] == xxh3_64_intdigest(datagram[:-8])
        assert rows.words[i].tobytes() == datagram[:48]
    assert bytes(rows.flat) == b"".join(datagrams) == bytes(rows_of.bytes)
    rows.payloads[1] = 7
    assert bytes(rows_of.slab.flat[3 + rows_of.datagram_bytes + 48 :][:70]) == b"\7" * 70


def test_the_views_of_a_length_are_made_once() -> None:
    slab = Slab()
    first = slab.layout(100, 5)
    assert slab.layout(100, 5) is first
    assert slab.layout(100, 3) is first
    more = slab.layout(100, 9)
    assert more.rows == 9
    assert slab.layout(100, 5) is more


@pytest.mark.req("GC-LIM-1")
def test_views_are_kept_for_few_lengths() -> None:
    """A path that sends every length there is does not make the slab grow."""
    slab = Slab()
    kept = [slab.layout(size, 1) for size in range(56, 56 + Slab.LAYOUTS_MAX + 10)]
    assert slab.layout(56, 1) is not kept[0]
    assert slab.layout(56 + Slab.LAYOUTS_MAX + 9, 1) is kept[-1]
    assert len(slab._layouts) == Slab.LAYOUTS_MAX


@given(st.lists(st.binary(max_size=200), max_size=5))
@settings(deadline=None)
def test_bursts_of_single_datagrams_hold_them_in_order(datagrams: list[bytes]) -> None:
    assert [datagram for each in burst_of(datagrams) for datagram in [bytes(each.bytes)]] == datagrams


def test_a_burst_is_what_lies_between_its_offset_and_its_end() -> None:
    slab = Slab(10)
    slab.flat[:] = np.arange(10)
    assert split(Burst(slab, 2, 3, 1)) == [b"\1\2", b"\3\4", b"\5\6"]


@given(st.integers(1, 65_507))
@settings(deadline=None)
def test_a_burst_fits_one_send_and_its_slab(datagram_bytes: int) -> None:
    rows = rows_per_burst(datagram_bytes)
    assert 1 <= rows <= ROWS_MAX
    assert rows * datagram_bytes <= min(65_507, SLAB_BYTES)
    assert rows == ROWS_MAX or (rows + 1) * datagram_bytes > 65_507


@pytest.mark.req("GC-WIRE-2")
def test_the_check_covers_header_and_payload() -> None:
    header = Header(type=DatagramType.HEARTBEAT, link_id=1, epoch=2, sequence=3)
    datagram = encode_datagram(header, ANNOUNCEMENT.pack())
    assert len(datagram) == 64 + OVERHEAD_BYTES
    assert int.from_bytes(datagram[-8:], "big") == xxh3_64_intdigest(header.pack() + ANNOUNCEMENT.pack(), seed=0)
