"""The pacer holds the rate in every window of time, whatever the sender does, and reaches it when it may."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.link.pacing import BURST_BYTES, BURST_S, Pacer

HEADER_BYTES = 28

RATES = st.sampled_from([9_600, 1_000_000, 10_000_000, 1_000_000_000, 40_000_000_000])


@st.composite
def bursts(draw: st.DrawFn) -> tuple[int, int]:
    """Datagrams, and payload bytes of all together: at most what one GSO send carries."""
    datagrams = draw(st.integers(1, 64))
    return datagrams, datagrams * draw(st.integers(0, 65_507 // datagrams))


def wire_bytes(burst: tuple[int, int]) -> int:
    datagrams, payload_bytes = burst
    return payload_bytes + datagrams * HEADER_BYTES


@pytest.mark.req("GC-PACE-2")
@settings(deadline=None)
@given(
    rate_bps=RATES,
    steps=st.lists(
        st.tuples(
            bursts(),
            st.floats(0, 0.2),  # how long there was nothing to send
            st.one_of(st.just(0.0), st.floats(0, 0.02)),  # how late the sender woke up
            st.one_of(st.just(0.0), st.floats(0, 0.5)),  # how long the kernel held it up
        ),
        max_size=60,
    ),
)
def test_no_window_of_time_has_more_than_the_rate_and_one_burst(
    rate_bps: int, steps: list[tuple[tuple[int, int], float, float, float]]
) -> None:
    pacer = Pacer(rate_bps, HEADER_BYTES)
    now_s = 1000.0
    sent: list[tuple[float, int]] = []
    for burst, idle_s, late_s, stalled_s in steps:
        now_s = max(now_s + idle_s, pacer.ready_at(*burst)) + late_s
        now_s += stalled_s
        sent.append((now_s, wire_bytes(burst)))
        pacer.sent(now_s, *burst)
    burst_bytes = max(BURST_S * rate_bps / 8, BURST_BYTES)
    until = list(accumulate(size for _, size in sent))
    for i, (begin_s, size) in enumerate(sent):
        for j in range(i, len(sent)):
            allowed = rate_bps / 8 * (sent[j][0] - begin_s) + burst_bytes
            assert until[j] - until[i] + size <= allowed * (1 + 1e-9) + 1


@pytest.mark.req("GC-PACE-1")
@settings(deadline=None)
@given(rate_bps=RATES, burst=bursts(), late_s=st.floats(0, 0.0005))
def test_a_sender_that_always_has_something_reaches_the_rate(
    rate_bps: int, burst: tuple[int, int], late_s: float
) -> None:
    pacer = Pacer(rate_bps, HEADER_BYTES)
    now_s, size = 0.0, 0
    for _ in range(2_000):
        now_s = max(now_s, pacer.ready_at(*burst)) + (late_s if pacer.ready_at(*burst) > now_s else 0.0)
        pacer.sent(now_s, *burst)
        size += wire_bytes(burst)
    # Each wake-up comes late, but the burst allowance makes up for it.
    assert size >= rate_bps / 8 * now_s * (1 - 1e-9)


@pytest.mark.req("GC-PACE-1")
def test_headers_are_counted() -> None:
    """What only has headers is held back as well: ten bytes of payload in each of many datagrams."""
    pacer = Pacer(1_000_000, HEADER_BYTES)
    now_s = 0.0
    for _ in range(1_000):
        now_s = max(now_s, pacer.ready_at(50, 500))
        pacer.sent(now_s, 50, 500)
    sent_bits = 1_000 * 50 * (10 + HEADER_BYTES) * 8
    assert sent_bits / 1_000_000 - now_s == pytest.approx(BURST_BYTES * 8 / 1_000_000, rel=0.02)


def test_an_idle_sender_saves_up_no_more_than_one_burst() -> None:
    pacer = Pacer(8_000_000, 0)
    pacer.sent(0.0, 1, BURST_BYTES)
    hour = 3600.0
    assert pacer.ready_at(1, BURST_BYTES) <= hour
    pacer.sent(hour, 1, BURST_BYTES)
    assert pacer.ready_at(1, 1_000) == pytest.approx(hour + 0.001)


def test_without_a_rate_nothing_waits() -> None:
    pacer = Pacer(0, HEADER_BYTES)
    for _ in range(100):
        assert pacer.ready_at(64, 65_000) <= 5.0
        pacer.sent(5.0, 64, 65_000)


def test_the_first_burst_never_waits() -> None:
    assert Pacer(9_600, HEADER_BYTES).ready_at(64, 65_000) == -math.inf
