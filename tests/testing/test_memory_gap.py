"""The gap in memory does to each datagram what is asked for, and nothing else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.testing.memory_gap import Fate, MemoryGap, bursts_of, datagrams_of


def test_without_fates_everything_arrives_at_once_and_in_order() -> None:
    gap = MemoryGap()
    gap.send([b"one", b"two", b""], 1.0)
    assert gap.next_arrival_s == 1.0
    assert gap.arrive(0.9) == []
    assert gap.arrive(1.0) == [b"one", b"two", b""]
    assert gap.under_way == 0
    assert gap.next_arrival_s is None


def test_each_fate_befalls_its_datagram_only() -> None:
    gap = MemoryGap()
    fates = {
        0: Fate(copies=0),
        1: Fate(copies=2),
        2: Fate(delay_s=0.5),
        3: Fate(flipped_bits=(0, 15, 16)),
        4: Fate(kept_bytes=1),
    }
    gap.send([b"a0", b"b0", b"c0", b"\x00\x00", b"e0", b"f0"], 0.0, fates)
    assert gap.arrive(0.0) == [b"b0", b"b0", b"\x00\x01", b"e", b"f0"]  # bit 16 is bit 0 again
    assert gap.next_arrival_s == 0.5
    assert gap.arrive(0.5) == [b"c0"]
    counts = gap.counts
    assert (counts.sent, counts.lost, counts.added, counts.arrived) == (6, 1, 1, 6)


def test_a_delayed_datagram_is_overtaken() -> None:
    gap = MemoryGap()
    gap.send([b"late", b"early"], 0.0, {0: Fate(delay_s=0.2)})
    gap.send([b"later"], 0.1)
    gap.send([b"latest"], 0.2)
    assert gap.arrive(1.0) == [b"early", b"later", b"late", b"latest"]


def test_an_impossible_fate_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        Fate(copies=-1)
    with pytest.raises(ValueError, match="must be 0 or more"):
        Fate(delay_s=-0.1)
    with pytest.raises(ValueError, match="must be 0 or more"):
        Fate(kept_bytes=-1)


@given(st.lists(st.binary(max_size=4)), st.integers(1, 5))
def test_bursts_keep_every_datagram_in_its_place(datagrams: list[bytes], datagrams_max: int) -> None:
    bursts = bursts_of(datagrams, datagrams_max)
    assert [datagram for burst in bursts for datagram in datagrams_of(burst)] == datagrams
    assert all(1 <= burst.count <= datagrams_max for burst in bursts)
    for burst, following in itertools.pairwise(bursts):
        full = burst.count == datagrams_max
        assert full or burst.datagram_bytes != following.datagram_bytes or burst.datagram_bytes == 0
