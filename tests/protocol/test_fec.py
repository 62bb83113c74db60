"""The code of spec/fec.md: the repair symbols are those made by hand, and from any of them lost symbols come back."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.buffers import PAGE_BYTES, Workspace, page_aligned
from gapconn.protocol.fec import (
    WHOLE,
    NumpyCodec,
    block_symbols_max,
    encode,
    rebuild,
    rebuild_matrix,
    repair_matrix,
    repair_symbols,
)
from tests.protocol import galois

CODEC = NumpyCodec()


def matrix_of(symbols: list[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array([list(symbol) for symbol in symbols], np.uint8)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32))
@settings(deadline=None)
@pytest.mark.req("GC-FEC-2")
def test_repair_symbols_are_those_made_by_hand(
    count: int, blocks: int, repairs: int, size_bytes: int, seed: int
) -> None:
    chance = random.Random(seed)
    blocks = min(blocks, count)
    symbols = [chance.randbytes(size_bytes) for _ in range(count)]
    repair = np.zeros((blocks * repairs, size_bytes), np.uint8)
    encode(CODEC, matrix_of(symbols), repair, blocks)
    assert [bytes(row) for row in repair] == galois.repair_of(symbols, blocks, repairs)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32))
@settings(deadline=None)
@pytest.mark.req("GC-FEC-3")
def test_any_symbols_that_are_enough_give_the_lost_ones_again(
    count: int, blocks: int, repairs: int, size_bytes: int, seed: int
) -> None:
    chance = random.Random(seed)
    blocks = min(blocks, count)
    source = matrix_of([chance.randbytes(size_bytes) for _ in range(count)])
    repair = np.zeros((blocks * repairs, size_bytes), np.uint8)
    encode(CODEC, source, repair, blocks)
    present = np.ones(count + blocks * repairs, np.bool_)
    for block in range(blocks):
        of_block = [*range(block, count, blocks), *range(count + block, len(present), blocks)]
        present[chance.sample(of_block, chance.randint(0, repairs))] = False
    damaged, damaged_repair = source.copy(), repair.copy()
    damaged[~present[:count]] = 0xA5
    damaged_repair[~present[count:]] = 0xA5
    made = rebuild(CODEC, damaged, damaged_repair, present=present, blocks=blocks, workspace=Workspace())
    assert made == np.count_nonzero(~present[:count])
    assert np.array_equal(damaged, source)


@pytest.mark.req("GC-FEC-3")
def test_every_choice_of_symbols_of_a_small_block_is_enough() -> None:
    """All of them: the code is as good as a code can be."""
    block = [bytes([a, 255 - a]) for a in (0, 1, 7, 128)]
    repair = [galois.repair_of_block(block, r) for r in range(4)]
    for kept in itertools.combinations(range(8), 4):
        lost = np.array([j for j in range(4) if j not in kept], np.intp)
        used = np.array([j - 4 for j in kept if j >= 4], np.intp)
        symbols = matrix_of(block)
        symbols[lost] = matrix_of(repair)[used] if len(used) else symbols[lost]
        made = np.zeros((len(lost), 2), np.uint8)
        if len(lost):
            CODEC.combine(rebuild_matrix(4, lost, used), symbols, made)
        assert [bytes(row) for row in made] == [block[j] for j in lost]


@pytest.mark.parametrize(("block_symbols", "repairs"), [(128, 127), (1, 254), (254, 1), (127, 128)])
@pytest.mark.req("GC-FEC-2", "GC-FEC-3")
def test_the_largest_blocks(block_symbols: int, repairs: int) -> None:
    source = np.arange(block_symbols * 3).astype(np.uint8).reshape(block_symbols, 3)
    repair = np.zeros((repairs, 3), np.uint8)
    encode(CODEC, source, repair, 1)
    lost = min(block_symbols, repairs)
    present = np.ones(block_symbols + repairs, np.bool_)
    present[:lost] = False
    present[block_symbols : block_symbols + repairs - lost] = False
    damaged = source.copy()
    damaged[:lost] = 0
    rebuild(CODEC, damaged, repair, present=present, blocks=1, workspace=Workspace())
    assert np.array_equal(damaged, source)


@given(st.integers(1, WHOLE), st.data())
@settings(deadline=None)
@pytest.mark.req("GC-FEC-5")
def test_a_block_has_its_share_of_repair_symbols_and_never_too_many(share: int, data: st.DataObject) -> None:
    largest = block_symbols_max(share)
    assert 1 <= largest <= 128
    count = data.draw(st.integers(1, largest))
    repairs = repair_symbols(count, share)
    assert repairs >= 1
    assert (repairs - 1) * WHOLE < count * share <= repairs * WHOLE
    assert count + repairs <= 255
    assert repair_symbols(count, 0) == 0


def test_the_matrices_of_the_specifications_example() -> None:
    assert repair_matrix(3, 2).tobytes().hex() == "f48e0147a77a"


def test_a_workspace_is_one_buffer_that_begins_on_a_page() -> None:
    assert all(page_aligned(size).ctypes.data % PAGE_BYTES == 0 for size in (1, 100, 1 << 20))
    workspace = Workspace()
    large = workspace.matrix(30, 100)
    assert large.shape == (30, 100)
    assert large.ctypes.data % PAGE_BYTES == 0
    small = workspace.matrix(3, 7)
    assert small.shape == (3, 7)
    assert small.ctypes.data == large.ctypes.data
