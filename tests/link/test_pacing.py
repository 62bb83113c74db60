"""The pacer holds the rate in every window of time, whatever the sender does, and reaches it when it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gapconn.link.pacing import CREDIT_S, TURN_S, WINDOW_S, Pacer

HEADER_BYTES = 28
MTU_BYTES = 1500
RATES = st.sampled_from([9_600, 1_000_000, 2_000_000, 10_000_000, 100_000_000, 1_000_000_000, 40_000_000_000])


@attrs.define
class Link:
    """A sender with a virtual clock that does with its pacer what the ingress does."""

    rate_bps: int
    mtu_bytes: int = MTU_BYTES
    now_s: float = 1000.0
    sleeps: int = 0
    sent: list[tuple[float, int]] = attrs.field(factory=list)
    """When, and bytes on the wire."""
    pacer: Pacer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pacer = Pacer(self.rate_bps, header_bytes=HEADER_BYTES, mtu_bytes=self.mtu_bytes)

    def send(
        self,
        count: int,
        datagram_bytes: int,
        *,
        left_bytes: int = 0,
        late: Callable[[], float] = lambda: 0.0,
        call: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Send a burst: each sleep ends `late`, and each system call takes as long as `call` says."""
        size = self.pacer.wire_bytes(1, datagram_bytes)
        left_bytes = max(left_bytes, count * size)
        while count:
            fitting = self.pacer.fit(self.now_s, count, datagram_bytes)
            if not fitting:
                self.now_s = max(self.now_s, self.pacer.wake_at(datagram_bytes, left_bytes)) + late()
                self.sleeps += 1
                continue
            self.sent.append((self.now_s, fitting * size))  # on the wire as soon as the call begins
            self.now_s += call()
            self.pacer.sent(self.now_s, fitting * size)
            count -= fitting
            left_bytes -= fitting * size

    def highest(self, window_s: float) -> int:
        """The most bytes that were sent in any time of that length, its end not included."""
        highest = held = first = 0
        for sent_s, size in self.sent:
            held += size
            while self.sent[first][0] + window_s <= sent_s:
                held -= self.sent[first][1]
                first += 1
            highest = max(highest, held)
        return highest

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.sent)

    @property
    def window_limit_bytes(self) -> int:
        """What the specification allows in 10 ms."""
        rate = int(self.rate_bps / 8 * 0.010)
        return rate if rate >= 32 * self.mtu_bytes else rate + self.mtu_bytes


@st.composite
def bursts(draw: st.DrawFn) -> tuple[int, int]:
    """Datagrams, and payload bytes of each: at most what one GSO send carries."""
    datagram_bytes = draw(st.integers(0, MTU_BYTES - HEADER_BYTES))
    return draw(st.integers(1, 64 if not datagram_bytes else min(64, 65_507 // datagram_bytes))), datagram_bytes


DELAYS = st.one_of(st.just(0.0), st.floats(0, 0.002), st.floats(0, 0.5))


@pytest.mark.req("GC-PACE-2", "GC-PACE-3")
@settings(deadline=None)
@given(
    rate_bps=RATES,
    steps=st.lists(st.tuples(bursts(), DELAYS, DELAYS, DELAYS), max_size=60),
    repeats=st.integers(1, 4),
)
def test_no_time_has_more_than_the_rate_allows(
    rate_bps: int, steps: list[tuple[tuple[int, int], float, float, float]], repeats: int
) -> None:
    """Whatever the sizes, idle times, late wake-ups and slow system calls."""
    link = Link(rate_bps)
    for burst, idle_s, late_s, call_s in steps * repeats:
        link.now_s += idle_s
        link.send(*burst, late=lambda late_s=late_s: late_s, call=lambda call_s=call_s: call_s)  # type: ignore[misc]
    assert link.highest(WINDOW_S) <= link.window_limit_bytes
    burst_bytes = max(0.002 * rate_bps / 8, MTU_BYTES)
    for i, (begin_s, _) in enumerate(link.sent):
        until = 0
        for sent_s, size in link.sent[i:]:
            until += size
            assert until <= rate_bps / 8 * (sent_s - begin_s) + burst_bytes + 1


def lateness(kind: str) -> Iterator[float]:
    """How late a sleeper wakes up, again and again."""
    number = 0
    while True:
        number += 1
        yield {"in time": 0.0, "late": 0.0001, "now and then": 0.0015 if number % 50 == 0 else 0.00006}[kind]


@pytest.mark.req("GC-PACE-1")
@pytest.mark.parametrize("kind", ["in time", "late", "now and then"])
@pytest.mark.parametrize("rate_bps", [int(1e7), int(1e8), int(5e8), int(1e9), int(2e9), int(5e9)])
@pytest.mark.parametrize("datagram_bytes", [200, 1472])
def test_a_sender_that_always_has_something_reaches_the_rate(rate_bps: int, kind: str, datagram_bytes: int) -> None:
    link, late = Link(rate_bps), lateness(kind)
    begin_s = link.now_s
    while link.now_s < begin_s + 0.5:
        for left in range(6, 0, -1):
            link.now_s += 0.00001
            wire_bytes = link.pacer.wire_bytes(44, datagram_bytes)
            link.send(44, datagram_bytes, left_bytes=left * wire_bytes, late=late.__next__, call=lambda: 0.00001)
    reached = link.total_bytes * 8 / (link.now_s - begin_s)
    could = 44 * (datagram_bytes + HEADER_BYTES) * 8 / 0.00002  # as fast as its system calls are
    assert reached >= 0.95 * min(rate_bps, could)
    assert link.highest(WINDOW_S) <= link.window_limit_bytes


@pytest.mark.req("GC-PACE-2")
def test_one_sleep_is_enough_for_several_bursts() -> None:
    link = Link(5_000_000_000)
    begin_s = link.now_s
    for _ in range(400):
        for left in range(6, 0, -1):
            link.send(44, 1472, left_bytes=left * 44 * 1500)
    assert link.sleeps <= (link.now_s - begin_s) / TURN_S * 1.5 < 6 * 400 / 3


@pytest.mark.req("GC-PACE-1")
def test_headers_are_counted() -> None:
    """What only has headers is held back as well: ten bytes of payload in each of many datagrams."""
    link = Link(1_000_000)
    begin_s = link.now_s
    for _ in range(200):
        link.send(50, 10)
    assert link.now_s - begin_s == pytest.approx(200 * 50 * (10 + HEADER_BYTES) * 8 / 1_000_000, rel=0.02)


@pytest.mark.req("GC-PACE-2", "GC-PACE-3")
@example(3600.0)
@given(idle_s=st.floats(0.05, 1e6))
def test_lost_time_is_not_caught_up_for_beyond_the_credit(idle_s: float) -> None:
    """Idle for an hour, or woken up an hour late: what follows at once is 2 ms of the rate."""
    link = Link(1_000_000_000)
    link.send(500, 1472)
    link.now_s += idle_s
    began_s, before = link.now_s, link.total_bytes
    while link.now_s == began_s:
        link.send(1, 1472)
    assert CREDIT_S * 1e9 / 8 - MTU_BYTES <= link.total_bytes - before - 1500 <= CREDIT_S * 1e9 / 8


@pytest.mark.req("GC-PACE-3")
def test_what_was_made_up_for_is_inside_the_window() -> None:
    """Again and again late by the whole credit: the worst that a bucket alone would let through."""
    link, number = Link(100_000_000), 0

    def late() -> float:
        nonlocal number
        number += 1
        return CREDIT_S if number % 4 == 0 else 0.0

    for _ in range(400):
        link.send(44, 1472, left_bytes=44 * 1500, late=late)
    assert link.highest(WINDOW_S) <= link.window_limit_bytes
    assert link.highest(WINDOW_S) > 0.9 * link.window_limit_bytes, "the limit is reached"


@pytest.mark.req("GC-PACE-3")
@pytest.mark.parametrize("rate_bps", [9_600, 1_000_000, 2_000_000])
def test_at_a_low_rate_a_packet_at_a_time(rate_bps: int) -> None:
    link = Link(rate_bps)
    for _ in range(5):
        link.send(44, 1472)
    assert link.highest(WINDOW_S) <= rate_bps * 0.010 / 8 + 1500
    between = [later[0] - earlier[0] for earlier, later in zip(link.sent[5:], link.sent[6:], strict=False)]
    assert between == pytest.approx([1500 * 8 / rate_bps] * len(between))


def test_without_a_rate_nothing_waits() -> None:
    link = Link(0)
    for _ in range(100):
        link.send(64, 1000)
    assert (link.sleeps, link.now_s, len(link.sent)) == (0, 1000.0, 100)


def test_a_single_message_never_waits_for_others() -> None:
    link = Link(1_000_000_000)
    for _ in range(1000):
        link.now_s += 0.001
        link.send(1, 300)
    assert link.sleeps == 0


def test_it_remembers_little_however_small_the_datagrams() -> None:
    link = Link(40_000_000_000)
    for _ in range(20_000):
        link.send(1, 0, call=lambda: 0.000001)
    assert len(link.pacer._recent) <= 101


# What can wait


@pytest.mark.req("GC-RPT-3")
@given(
    st.data(), RATES.filter(lambda rate: rate > 9_600), st.integers(min_value=60, max_value=MTU_BYTES - HEADER_BYTES)
)
@settings(max_examples=60, deadline=None)
def test_what_can_wait_leaves_room_for_what_cannot(data: st.DataObject, rate_bps: int, datagram_bytes: int) -> None:
    """However much waits, 10 ms have a tenth free, or hold one burst; and what comes then starts at once."""
    link = Link(rate_bps)
    pacer, window = link.pacer, link.window_limit_bytes
    late = data.draw(st.sampled_from([0.0, 1e-4, 1.1e-3]))
    for _ in range(300):
        count = pacer.spare_count(44, datagram_bytes)
        size = pacer.wire_bytes(count, datagram_bytes)
        assert count == 1 or size <= rate_bps / 8 * max(CREDIT_S, MTU_BYTES * 8 / rate_bps) / 4
        at_s = pacer.spare_at(link.now_s, size)
        if at_s > link.now_s:
            link.now_s = at_s + late
            assert pacer.spare_at(link.now_s, size) <= link.now_s, "it is asked once"
        assert pacer.fit(link.now_s, count, datagram_bytes) == count, "it is never cut"
        pacer.sent(link.now_s, size)
        link.sent.append((link.now_s, size))
    assert link.highest(WINDOW_S) <= max(0.9 * window, size)
    spent_s = link.now_s - link.sent[0][0]
    assert link.total_bytes >= 0.3 * rate_bps / 8 * spent_s, "it is not held up more than that"
    if window > 40 * MTU_BYTES:
        assert pacer.fit(link.now_s, 1, MTU_BYTES - HEADER_BYTES) == 1, "one packet of what is new goes at once"


def test_without_a_limit_nothing_waits() -> None:
    pacer = Pacer(0, header_bytes=HEADER_BYTES, mtu_bytes=MTU_BYTES)
    assert pacer.spare_at(5.0, 1 << 30) <= 5.0
    assert pacer.spare_count(44, 1000) == 44
