"""Datagrams that somebody made up, under checks that fit: the egress goes on, and does what the oracle says."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from tests.protocol.machine.egress import Egress
from tests.protocol.machine.oracle import DATA, Announcement, Datagram, EgressLimits
from tests.protocol.machine.search import chosen_profile
from tests.protocol.machine.world import (
    JUMP_UNCONFIRMED_MAX,
    LINK_ID,
    LOST_RANGES_MAX,
    MESSAGES_HELD_MAX,
    POSITIONS_TRACKED_MAX,
    SEQUENCE_WINDOW,
    TICK_S,
    small_limits,
)

LIMITS = EgressLimits(
    link_id=LINK_ID,
    interruption_timeout_s=1.0,
    hold_s=0.25,
    reassembly_bytes_max=1_000,
    message_bytes_max=2_000,
    sequence_window=SEQUENCE_WINDOW,
    jump_unconfirmed_max=JUMP_UNCONFIRMED_MAX,
    messages_held_max=MESSAGES_HELD_MAX,
    positions_tracked_max=POSITIONS_TRACKED_MAX,
    lost_ranges_max=LOST_RANGES_MAX,
)
_COVERED = bytes.fromhex("01000000 00000001 0000000000000000 00000001 00000000 90")
EMPTY_MESSAGE = _COVERED + xxh3_64_digest(_COVERED)
"""A batch with one record and an empty body."""

near_window = [SEQUENCE_WINDOW - 1, SEQUENCE_WINDOW, SEQUENCE_WINDOW + 1]
near_jump = [JUMP_UNCONFIRMED_MAX - 1, JUMP_UNCONFIRMED_MAX, JUMP_UNCONFIRMED_MAX + 1, 2 * JUMP_UNCONFIRMED_MAX]
sequences = st.one_of(
    st.integers(10, 60),
    st.integers(0, 40),
    st.integers(0, 120),
    st.sampled_from([*near_window, *near_jump, 2**63 - 1, 2**63, 2**64 - 1]),
)
epochs = st.sampled_from([3] * 20 + [0, 2, 4, 5, 2**64 - 1])
rarely = st.sampled_from([0] * 99 + [1])


@st.composite
def symbols(draw: st.DrawFn) -> list[bytes]:
    """Some symbols, each with the sequence and the symbol one higher than the one before."""
    payload = draw(
        st.sampled_from(
            [EMPTY_MESSAGE, EMPTY_MESSAGE, EMPTY_MESSAGE, bytes(33), bytes(17), bytes(16), bytes(64), b"x", b""]
        )
    )
    first = Datagram(
        magic=0x4743 + draw(rarely),
        version=1 + draw(rarely),
        type=DATA,
        flags=draw(rarely) * draw(st.sampled_from([1, 2, 3, 4, 0x8000])),
        symbol_length=len(payload) + draw(rarely),
        link_id=LINK_ID + draw(rarely),
        blocks=draw(st.sampled_from([1] * 9 + [2, 3, 4, 7, 255, 2**16 - 1, 0])),
        repair_symbols=draw(st.sampled_from([0] * 9 + [1, 2, 254, 255])),
        key_id=draw(rarely),
        epoch=draw(epochs),
        sequence=draw(sequences),
        message=draw(st.one_of(st.integers(0, 6), st.integers(0, 20), st.sampled_from([40, 500, 2**63, 2**64 - 1]))),
        message_length=draw(st.sampled_from([33, 33, 33, 33, 34, 64, 100, 400, 400, 900, 1_999, 2_001, 2**32 - 1, 32])),
        symbol=draw(st.sampled_from([0] * 9 + [1, 1, 2, 3, 24, 253, 254, 255, 2**32 - 1])),
    )
    made = []
    for step in range(draw(st.sampled_from([1, 1, 2, 3, 5]))):
        fields = {"sequence": min(first.sequence + step, 2**64 - 1), "symbol": (first.symbol + step) % 2**32}
        made.append(attrs.evolve(first, **fields).with_payload(payload))
    return made


@st.composite
def announcements(draw: st.DrawFn) -> list[bytes]:
    """An announcement."""
    said = Announcement(
        previous_epoch=draw(st.sampled_from([0, 0, 0, 2, 2, 3, 4])),
        messages_sent=draw(st.integers(0, 20)),
        records_sent=draw(st.sampled_from([0, 1, 5, 10, 2**64 - 1])),
        records_filtered=0,
        heartbeat_interval=draw(st.sampled_from([250] * 20 + [0, 2**32 - 1])),
        interruption_timeout=draw(st.sampled_from([500, 500, 750, 750, 2_000, 2_000, 250, 250, 2**32 - 1, 0])),
        message_length_max=0,
        mtu=0,
        symbol_length_max=0,
        security_mode=0,
        fec_source_symbols=0,
        fec_repair_symbols=0,
        phase=draw(st.sampled_from([1, 2, 2, 3] * 5 + [0, 255])),
        reserved=bytes([draw(rarely)]).rjust(12, b"\0"),
    )
    header = Datagram(
        magic=0x4743,
        version=1,
        type=draw(st.sampled_from([1, 3, 3, 3] * 5 + [4, 0, 5])),
        flags=0,
        symbol_length=draw(rarely),
        link_id=LINK_ID,
        blocks=draw(rarely),
        repair_symbols=0,
        key_id=draw(rarely),
        epoch=draw(epochs),
        sequence=draw(sequences),
        message=draw(rarely),
        message_length=0,
        symbol=draw(rarely),
    )
    payload = said.pack()
    return [header.with_payload(payload + b"x" * draw(rarely))]


arrivals = st.tuples(
    st.sampled_from([0, 0, 0, 1, 1, 2, 8, 16, 31, 47, 64, 130]),
    st.lists(st.one_of(symbols(), symbols(), announcements()), min_size=2, max_size=10),
)


@pytest.mark.req("GC-MOD-5", "GC-MOD-6", "GC-LIM-1", "GC-LIM-2", "GC-FEC-4", "GC-SEC-5")
@settings(deadline=None, max_examples=chosen_profile().runs)
@given(arrivals=st.lists(arrivals, max_size=12), burst_max=st.sampled_from([1, 2, 64]))
def test_an_egress_that_is_lied_to_does_what_is_specified(
    arrivals: list[tuple[int, list[list[bytes]]]], burst_max: int
) -> None:
    with small_limits():
        now_s = 1_000 * TICK_S
        egress = Egress(LIMITS, burst_max=burst_max, now_s=now_s)
        for ticks, made in arrivals:
            now_s += ticks * TICK_S
            egress.feed([datagram for several in made for datagram in several], now_s)
            egress.check(now_s)
