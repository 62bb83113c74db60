"""Messages are cut by the formulas of spec/delivery.md, into datagrams that are the same as those made by hand."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.buffers import Workspace
from gapconn.protocol.fec import NumpyCodec
from gapconn.protocol.fragmenter import Cut, Fragmenter, cut_of
from gapconn.protocol.registry import MESSAGE_BYTES_MAX, SYMBOLS_PER_BLOCK_MAX
from gapconn.protocol.wire import OVERHEAD_BYTES, ROWS_MAX, SLAB_BYTES, Header, Slab
from tests.protocol.frames import LINK_ID, Session, split

lengths = st.one_of(st.integers(33, 5_000), st.integers(33, MESSAGE_BYTES_MAX))
symbols_max = st.one_of(st.integers(65, 1_500), st.integers(65, 65_451))


def made(message: bytes, cut: Cut, number: int) -> Fragmenter:
    return Fragmenter(
        bytearray(message),
        cut=cut,
        link_id=LINK_ID,
        epoch=9,
        number=number,
        codec=NumpyCodec(),
        workspace=Workspace(),
    )


@given(lengths, symbols_max, st.integers(1, ROWS_MAX))
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-DLV-2", "GC-WIRE-6")
def test_symbols_are_as_few_as_can_be_and_equal(length: int, symbol_bytes_max: int, rows_max: int) -> None:
    cut = cut_of(length, symbol_bytes_max, rows_max)
    assert 1 <= cut.symbol_bytes <= symbol_bytes_max
    assert cut.symbols == -(-length // cut.symbol_bytes) <= -(-length // symbol_bytes_max)
    assert cut.symbols * cut.symbol_bytes - length < cut.symbols, "less than one byte per symbol is wasted"
    assert 1 <= cut.rows <= rows_max
    assert cut.rows * (cut.symbol_bytes + OVERHEAD_BYTES) <= SLAB_BYTES
    assert 1 <= cut.blocks <= cut.symbols <= cut.blocks * SYMBOLS_PER_BLOCK_MAX


@pytest.mark.parametrize(
    ("length", "symbol_bytes_max", "symbol_bytes", "symbols"),
    [
        pytest.param(33, 1_416, 33, 1, id="the shortest message"),
        pytest.param(1_416, 1_416, 1_416, 1, id="one full symbol"),
        pytest.param(1_417, 1_416, 709, 2, id="one byte more"),
        pytest.param(2_832, 1_416, 1_416, 2, id="two full symbols"),
        pytest.param(10, 4, 4, 3, id="the last symbol is filled up"),
        pytest.param(50, 7, 7, 8, id="no fill to spare"),
        pytest.param(51, 5, 5, 11, id="a prime cut"),
        pytest.param(9_000, 1_000, 1_000, 9, id="no remainder"),
    ],
)
@pytest.mark.req("GC-DLV-2")
def test_cuts_worked_out_by_hand(length: int, symbol_bytes_max: int, symbol_bytes: int, symbols: int) -> None:
    cut = cut_of(length, symbol_bytes_max)
    assert (cut.symbol_bytes, cut.symbols) == (symbol_bytes, symbols)


@given(
    length=st.one_of(st.integers(33, 300), st.integers(33, 40_000)),
    symbol_bytes_max=st.integers(65, 700),
    rows_max=st.integers(1, ROWS_MAX),
    share=st.sampled_from([0, 0, 500, 10_000]),
    numbers=st.tuples(st.integers(0, 2**40), st.integers(2**41, 2**42)),
)
@settings(deadline=None)
@pytest.mark.req("GC-DLV-2", "GC-WIRE-1", "GC-WIRE-5", "GC-FEC-1", "GC-FEC-2")
def test_the_datagrams_are_those_made_by_hand(
    length: int, symbol_bytes_max: int, rows_max: int, share: int, numbers: tuple[int, int]
) -> None:
    number, sequence = numbers
    message = bytes(i % 251 for i in range(length))
    cut = cut_of(length, symbol_bytes_max, rows_max, share)
    by_hand = Session(
        epoch=9,
        symbol_bytes=cut.symbol_bytes,
        block_symbols={0: SYMBOLS_PER_BLOCK_MAX, 500: 128, 10_000: 127}[share],
        repair_symbols=cut.repair_symbols,
        sequence=sequence,
        messages=number,
    ).symbols(message)
    fragmenter = made(message, cut, number)
    built: list[bytes] = []
    left = fragmenter.bursts_left
    assert left == cut.bursts
    slab = Slab()
    while fragmenter.bursts_left:
        burst = fragmenter.build(slab, sequence + len(built))
        built += split(burst)
        left -= 1
        assert fragmenter.bursts_left == left
    assert built == by_hand


@pytest.mark.parametrize(
    ("symbols", "share", "counts"),
    [(1, 0, [1]), (1, 500, [2]), (3, 10_000, [6]), (4, 10_000, [4, 4]), (4, 500, [5]), (6, 500, [6, 1])],
)
def test_symbols_of_both_kinds_travel_together_where_one_burst_has_room(
    symbols: int, share: int, counts: list[int]
) -> None:
    length = 65 * symbols
    fragmenter = made(bytes(length), cut_of(length, 65, 6, share), 0)
    built: list[int] = []
    while fragmenter.bursts_left:
        built.append(fragmenter.build(Slab(), sum(built)).count)
    assert built == counts


def test_all_headers_of_a_message_are_equal_but_for_sequence_and_symbol() -> None:
    """So that a burst is checked as a matrix, and need not end where a block does."""
    length = 1_000 * 65
    fragmenter = made(bytes(length), cut_of(length, 65, 44), 0)
    headers: list[Header] = []
    while fragmenter.bursts_left:
        burst = fragmenter.build(Slab(), len(headers))
        assert burst.count == min(44, 1_000 - len(headers))
        headers += [Header.unpack(datagram) for datagram in split(burst)]
    assert headers == [attrs.evolve(headers[0], sequence=i, symbol=i) for i in range(1_000)]
    assert headers[0].blocks == 4
