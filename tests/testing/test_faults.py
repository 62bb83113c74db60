"""Faults without sockets: each kind does what it says, exactly as often as it counts, whatever the grouping."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.testing.faults import FaultPlan, Faults, GapCounts, GapSwitch, Outage, Train

SIZE = 16


def _numbered(count: int) -> list[bytes]:
    return [number.to_bytes(SIZE, "big") for number in range(count)]


@attrs.define
class Gap:
    """Faults, driven by hand."""

    plan: FaultPlan
    counts: GapCounts = attrs.field(factory=GapCounts)
    switch: GapSwitch = attrs.field(factory=GapSwitch)
    now: float = 0.0
    trains: list[Train] = attrs.field(factory=list)
    faults: Faults = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.faults = Faults(self.plan, self.counts, started_at=0.0, switch=self.switch)

    def pass_through(self, datagrams: Iterable[bytes], group: int = 1) -> list[bytes]:
        """What comes out right away when the datagrams come in, `group` of them at a time."""
        waiting = list(datagrams)
        out = []
        while waiting:
            burst, waiting = waiting[:group], waiting[group:]
            self.faults.incoming(memoryview(b"".join(burst)), len(burst[0]), self.now)
            out += self.come_out()
        return out

    def come_out(self) -> list[bytes]:
        return self._unpacked(self.faults.outgoing(self.now))

    def end(self) -> list[bytes]:
        return self._unpacked(self.faults.flush())

    def _unpacked(self, trains: list[Train]) -> list[bytes]:
        self.trains += trains
        out = [bytes(datagram) for train in trains for datagram in train.datagrams()]
        self.counts.forwarded += len(out)
        return out


def _assert_accounted_for(counts: GapCounts) -> None:
    lost = counts.dropped + counts.cut + counts.overrun + counts.unsent
    assert counts.received + counts.duplicated == counts.forwarded + lost


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": -0.1},
        {"drop": 1.1},
        {"corrupt": float("nan")},
        {"duplicate": 2},
        {"burst": -1},
        {"burst_every": 0},
        {"reorder": -1},
        {"reorder_depth": 0},
        {"reorder_hold_s": float("inf")},
        {"delay_s": -1},
        {"jitter_s": -0.001},
        {"rate_bps": -1},
        {"queue_bytes": 1000},
        {"drop": 0.5, "reorder": 0.4, "duplicate": 0.2},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        FaultPlan(**wrong)


def test_an_outage_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="duration_s"):
        Outage(start_s=0, duration_s=-1)


@pytest.mark.parametrize("group", [1, 7, 44])
def test_without_faults_everything_passes_as_it_came(group: int) -> None:
    gap = Gap(FaultPlan())
    assert gap.pass_through(_numbered(1000), group) == _numbered(1000)
    assert gap.counts == GapCounts(received=1000, forwarded=1000)
    assert gap.faults.due == float("inf")


@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 100, 1472, 30_000, 65_507]), max_size=40),
    gathered=st.integers(min_value=1, max_value=40),
)
def test_trains_hold_what_one_send_can_carry(sizes: list[int], gathered: int) -> None:
    gap = Gap(FaultPlan())
    datagrams = [random.Random(n).randbytes(size) for n, size in enumerate(sizes)]
    out = []
    for start in range(0, len(datagrams), gathered):
        for datagram in datagrams[start : start + gathered]:
            gap.faults.incoming(memoryview(datagram), len(datagram), 0.0)
        out += gap.come_out()
    assert out == datagrams
    for train in gap.trains:
        lengths = [len(datagram) for datagram in train.datagrams()]
        assert set(lengths[:-1]) <= {train.segment_bytes}
        assert 0 < lengths[-1] <= train.segment_bytes or lengths == [0]
        assert len(lengths) == train.count <= 64
        assert sum(lengths) == train.size_bytes <= 65_507


def test_what_comes_together_leaves_in_few_sends() -> None:
    gap = Gap(FaultPlan())
    for datagram in [bytes(100)] * 128:
        gap.faults.incoming(memoryview(datagram), 100, 0.0)
    gap.come_out()
    assert [train.count for train in gap.trains] == [64, 64]


plans = st.builds(
    FaultPlan,
    drop=st.sampled_from([0, 0.01, 0.2, 0.4]),
    burst=st.sampled_from([0, 0, 1, 30]),
    burst_every=st.sampled_from([1, 40, 300]),
    duplicate=st.sampled_from([0, 0.01, 0.2, 0.3]),
    reorder=st.sampled_from([0, 0.01, 0.2, 0.3]),
    reorder_depth=st.sampled_from([1, 3, 50]),
    corrupt=st.sampled_from([0, 0.05, 1]),
    seed=st.integers(),
)


@given(plan=plans, groups=st.lists(st.integers(min_value=1, max_value=64), min_size=1, max_size=20))
def test_the_seed_and_the_number_decide_and_the_grouping_does_not(plan: FaultPlan, groups: list[int]) -> None:
    datagrams = _numbered(sum(groups))
    grouped, single = Gap(plan), Gap(plan)
    out, start = [], 0
    for group in groups:
        out += grouped.pass_through(datagrams[start : start + group], group)
        start += group
    out += grouped.end()
    assert out == single.pass_through(datagrams) + single.end()
    assert grouped.counts == single.counts


@given(plan=plans)
def test_every_datagram_is_accounted_for_and_what_comes_out_is_what_was_counted(plan: FaultPlan) -> None:
    plan = attrs.evolve(plan, corrupt=0.0)
    gap = Gap(plan)
    sent = _numbered(300)
    out = gap.pass_through(sent, 7) + gap.end()
    _assert_accounted_for(gap.counts)
    times = Counter(out)
    assert set(times) <= set(sent)
    assert gap.counts.dropped == sum(datagram not in times for datagram in sent)
    assert gap.counts.duplicated == sum(times.values()) - len(times) == sum(n == 2 for n in times.values())
    highest, late = -1, 0
    for number in (int.from_bytes(datagram, "big") for datagram in dict.fromkeys(out)):
        late += number < highest
        highest = max(highest, number)
    assert late >= gap.counts.reordered  # held-back ones overtake one another as well
    assert (late > 0) == (gap.counts.reordered > 0)


@given(plan=plans)
def test_corruption_flips_one_bit_and_copies_stay_clean(plan: FaultPlan) -> None:
    gap = Gap(attrs.evolve(plan, drop=0.0, burst=0))
    sent = [bytes(SIZE)] * 200
    out = gap.pass_through(sent, 5) + gap.end()
    ones = Counter(int.from_bytes(datagram, "big").bit_count() for datagram in out)
    assert set(ones) <= {0, 1}
    assert ones[1] == gap.counts.corrupted
    if plan.corrupt == 1:
        assert gap.counts.corrupted == 200


def test_an_empty_datagram_passes_and_cannot_be_corrupted() -> None:
    gap = Gap(FaultPlan(corrupt=1))
    first, (flipped,), last = (gap.pass_through([datagram]) for datagram in (b"", b"\0", b""))
    assert first == last == [b""]
    assert flipped[0].bit_count() == 1
    assert gap.counts == GapCounts(received=3, forwarded=3, corrupted=1)


@pytest.mark.parametrize(("kind", "counted"), [("drop", "dropped"), ("duplicate", "duplicated")])
@pytest.mark.parametrize("probability", [0.001, 0.02, 0.5, 1.0])
def test_faults_are_as_frequent_as_asked(kind: str, counted: str, probability: float) -> None:
    options: dict[str, Any] = {kind: probability, "seed": 3}
    gap = Gap(FaultPlan(**options))
    total = 50_000
    for _ in range(total // 50):
        gap.faults.incoming(memoryview(bytes(50)), 1, 0.0)
        gap.come_out()
    expected = total * probability
    tolerance = 5 * (total * probability * (1 - probability)) ** 0.5  # five standard deviations
    assert abs(getattr(gap.counts, counted) - expected) <= tolerance


@pytest.mark.parametrize("group", [1, 7, 64])
def test_bursts_are_as_long_and_as_far_apart_as_asked(group: int) -> None:
    gap = Gap(FaultPlan(burst=30, burst_every=100, seed=1))
    out = [int.from_bytes(datagram, "big") for datagram in gap.pass_through(_numbered(20_000), group)]
    missing = [after - before - 1 for before, after in itertools.pairwise(out)]
    bursts = [at for at, lost in enumerate(missing) if lost]
    assert {missing[at] for at in bursts} == {30}
    between = {after - before for before, after in itertools.pairwise(bursts)}
    assert 50 <= min(between) < 75
    assert 125 < max(between) <= 150
    assert 150 <= len(bursts) == gap.counts.dropped // 30 <= 157
    assert gap.counts.forwarded == len(out)


def test_corruption_does_not_change_what_else_happens() -> None:
    alone, together = Gap(FaultPlan(drop=0.1, seed=5)), Gap(FaultPlan(drop=0.1, corrupt=0.3, seed=5))
    sent = [bytes(4)] * 500
    alone.pass_through(sent)
    together.pass_through(sent)
    assert alone.counts.dropped == together.counts.dropped > 0
    other = Gap(FaultPlan(drop=0.1, seed=6))
    assert Gap(FaultPlan(drop=0.1, seed=5)).pass_through(_numbered(500)) != other.pass_through(_numbered(500))


def test_a_held_datagram_follows_later_ones() -> None:
    gap = Gap(FaultPlan(reorder=0.05, reorder_depth=4, seed=1))
    out = gap.pass_through(_numbered(2000), 20) + gap.end()
    assert out != _numbered(2000)
    assert sorted(out) == _numbered(2000)
    for place, datagram in enumerate(out):
        assert -8 <= int.from_bytes(datagram, "big") - place <= 20  # 4, and others that were held back too
    assert 50 <= gap.counts.reordered <= 150


def test_a_held_datagram_follows_after_its_time_when_nothing_comes() -> None:
    gap = Gap(FaultPlan(reorder=1, reorder_hold_s=0.005))
    assert gap.pass_through(_numbered(1)) == []
    assert gap.faults.due == 0.005
    gap.now = 0.004
    assert gap.come_out() == []
    gap.now = 0.005
    assert gap.come_out() == _numbered(1)
    assert gap.counts == GapCounts(received=1, forwarded=1)  # nothing overtook it
    assert gap.faults.due == float("inf")


def test_what_is_held_back_is_bounded() -> None:
    gap = Gap(FaultPlan(reorder=1, reorder_hold_s=1000))
    out = gap.pass_through(_numbered(10_000), 50)
    assert len(out) >= 10_000 - 4096
    assert len(out) + len(gap.end()) == 10_000


def test_an_outage_cuts_and_consumes_the_fates() -> None:
    outages = (Outage(start_s=1, duration_s=1), Outage(start_s=5, duration_s=0.5))
    gap = Gap(FaultPlan(drop=0.3, corrupt=0.3, seed=2, outages=outages))
    never_off = Gap(FaultPlan(drop=0.3, corrupt=0.3, seed=2))
    sent = _numbered(400)
    for start, now, passes in ((0, 0.999, True), (100, 1.0, False), (200, 1.999, False), (300, 2.0, True)):
        gap.now = now
        part = sent[start : start + 100]
        expected = never_off.pass_through(part)
        assert gap.pass_through(part, 10) == (expected if passes else [])
    assert gap.counts.cut == 200
    _assert_accounted_for(gap.counts)


def test_the_switch_cuts() -> None:
    gap = Gap(FaultPlan())
    sent = _numbered(30)
    assert gap.pass_through(sent[:10]) == sent[:10]
    gap.switch.toggle()
    assert gap.pass_through(sent[10:20]) == []
    gap.switch.toggle()
    assert gap.pass_through(sent[20:]) == sent[20:]
    assert gap.counts == GapCounts(received=30, forwarded=20, cut=10)


def test_without_its_faults_the_gap_passes_everything_and_consumes_the_fates() -> None:
    plan = FaultPlan(drop=0.2, duplicate=0.2, corrupt=0.2, seed=4)
    gap, always_on = Gap(plan), Gap(plan)
    sent = _numbered(300)
    for start, is_calm in ((0, False), (100, True), (200, False)):
        gap.switch.faults = not is_calm
        part = sent[start : start + 100]
        expected = always_on.pass_through(part)
        assert gap.pass_through(part, 10) == (part if is_calm else expected)
    gap.switch.toggle_faults()
    assert gap.pass_through(sent) == sent
    _assert_accounted_for(gap.counts)


def test_delay_and_jitter_keep_the_order() -> None:
    gap = Gap(FaultPlan(delay_s=0.1, jitter_s=0.05))
    sent = _numbered(100)
    out = []
    for step in range(100):
        gap.now = step * 0.01
        out += gap.pass_through([sent[step]])
        assert step - 15 <= len(out) <= max(0, step - 9)
    assert out
    assert gap.faults.due <= gap.now + 0.15
    out += gap.end()
    assert out == sent
    _assert_accounted_for(gap.counts)


def test_a_rate_spreads_and_a_full_queue_loses_the_newest() -> None:
    # 972 bytes and 28 of headers are 8000 bits: one datagram in a millisecond. 68 of them fit the queue.
    gap = Gap(FaultPlan(rate_bps=8_000_000, queue_bytes=66_096))
    sent = [bytes([n]) * 972 for n in range(100)]
    assert gap.pass_through(sent) == []
    assert gap.counts.overrun == 32
    gap.now = 0.0101
    assert gap.come_out() == sent[:10]
    gap.now = 1.0
    assert gap.come_out() == sent[10:68]
    assert gap.pass_through(sent[:1]) == []
    assert gap.faults.due == pytest.approx(1.001)  # an idle link saves nothing up
    gap.end()
    _assert_accounted_for(gap.counts)


def test_what_waits_does_not_refer_to_the_callers_buffer() -> None:
    for plan in (FaultPlan(delay_s=1), FaultPlan(reorder=1), FaultPlan(reorder=1, corrupt=1, delay_s=1)):
        gap = Gap(plan)
        buffer = bytearray(b"\0" * 8)
        gap.faults.incoming(memoryview(buffer), 8, 0.0)
        gap.come_out()
        buffer[:] = b"\xff" * 8
        assert sum(gap.end()[0]) <= 128  # at most one bit was flipped
