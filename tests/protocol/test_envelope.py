"""Messages: whatever is put into one comes out, and whatever else arrives is refused in one way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES, Run, begin_message, end_message, open_message
from gapconn.protocol.registry import MessageKind
from tests.protocol.frames import message_of


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Runs as a source with positions makes them."""
    previous = draw(st.integers(-1, 2**63 - 2))
    first = draw(st.integers(previous + 1, 2**63 - 1))
    last = draw(st.integers(first, 2**63 - 1))
    return Run(
        stream=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        partition=draw(st.integers(0, 2**31 - 1)),
        previous=previous,
        first=first,
        last=last,
        count=draw(st.integers(1, min(last - first + 1, 2**32))),
        begun=draw(st.integers(0, first)),
        continues=draw(st.booleans() | st.integers(1, 2**64 - 1)),
        chain=draw(st.integers(0, 2**64 - 1)),
    )


@given(st.binary(max_size=300), st.lists(runs(), max_size=4), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
@pytest.mark.req("GC-WIRE-10", "GC-WIRE-11")
def test_a_message_comes_out_as_it_went_in(body: bytes, positions: list[Run], first_record: int, count: int) -> None:
    message = message_of(body, runs=positions, first_record=first_record, record_count=count)
    opened = open_message(memoryview(message))
    assert (opened.kind, opened.first_record, opened.record_count) == (MessageKind.BATCH, first_record, count)
    assert (opened.runs, bytes(opened.body)) == (positions, body)
    assert message[-8:] == xxh3_64_digest(message[:-8])


def test_the_body_is_a_view_of_the_message() -> None:
    message = bytearray(message_of(b"abc"))
    opened = open_message(memoryview(message))
    message[-11] = ord("A")
    assert bytes(opened.body) == b"Abc"


def test_a_message_without_body_and_positions_is_the_shortest() -> None:
    assert len(message_of(b"")) == MESSAGE_OVERHEAD_BYTES + 1 == 33


def test_a_buffer_is_used_again_whatever_it_held() -> None:
    buffer = bytearray(b"the message before, which was longer" * 9)
    offset = begin_message(buffer, kind=MessageKind.BATCH, first_record=0, record_count=1, runs=[])
    assert offset == len(buffer) == 25
    buffer += b"x"
    end_message(buffer)
    assert bytes(buffer) == message_of(b"x")


@given(st.binary(min_size=25, max_size=120))
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-WIRE-11", "GC-MOD-6")
def test_bytes_with_a_check_that_fits_are_opened_or_refused(covered: bytes) -> None:
    """No other exception, whatever the bytes. The first ones are made plausible, so that the later are looked at."""
    plausible = b"\1\0\0\0" + bytes([0, 0, 0, covered[7] % 40]) + covered[8:20] + bytes(4) + covered[24:]
    for message in (covered, plausible):
        reason = None
        try:
            open_message(memoryview(message + xxh3_64_digest(message)))
        except RemoteProtocolError as error:
            reason = error.reason
        assert reason in (None, "damaged")


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(1, 255))
@settings(deadline=None)
@pytest.mark.req("GC-WIRE-11")
def test_a_message_with_any_byte_changed_is_refused(body: bytes, place: int, change: int) -> None:
    message = bytearray(message_of(body, runs=[Run("s", 0, -1, 0, 0, 1, 0, False, 0)]))
    message[place % len(message)] ^= change
    with pytest.raises(RemoteProtocolError, match="check"):
        open_message(memoryview(message))
