"""What the steps of a bench say together, and how it is shown."""

from __future__ import annotations

from typing import Any

import pytest

from gapconn.bench.egress import Counts, StepResult
from gapconn.bench.plan import Sent, default_rates
from gapconn.bench.report import Conclusion, arrived_line, conclude, short_rate, step_facts
from gapconn.config import Link
from gapconn.units import Address, BitsPerSecond

GBIT = 1_000_000_000
LINK = Link(name="orders", address=Address("192.0.2.1", 7400))


def result(rate_bps: int, *, reached_bps: int | None = None, sent: bool = True, **arrived: Any) -> StepResult:
    """A step of a second in which 100 records were sent."""
    counts: dict[str, Any] = {
        "at_s": 1.5,
        "cpu_s": 0.3,
        "datagrams": 1000,
        "datagrams_missed": 0,
        "rebuilt": 0,
        "kernel_drops": 0,
        "messages_lost": 0,
        "verified": 100,
        "damaged": 0,
    }
    wire_bytes = (reached_bps or rate_bps) // 8
    return StepResult(
        step=0,
        steps=8,
        rate_bps=rate_bps,
        sent=Sent(records=100, payload_bytes=wire_bytes, datagrams=1000, wire_bytes=wire_bytes, took_s=1.0, cpu_s=0.2)
        if sent
        else None,
        arrived=Counts(**{**counts, **arrived}),
        payload_bps=0.9 * rate_bps,
    )


def held(rate_bps: int) -> StepResult:
    return result(rate_bps)


def lost(rate_bps: int, **arrived: Any) -> StepResult:
    return result(rate_bps, datagrams_missed=7, messages_lost=1, verified=96, **arrived)


def concluded(*results: StepResult) -> Conclusion:
    return conclude(list(results), LINK)


def test_a_step_holds_only_if_nothing_was_lost_at_all() -> None:
    assert held(GBIT).held
    repaired = result(GBIT, datagrams_missed=3)
    assert (repaired.whole, repaired.held) == (True, False)
    wrongs: list[dict[str, Any]] = [{"messages_lost": 1}, {"verified": 99}, {"damaged": 1}, {"verified": 101}]
    for wrong in wrongs:
        assert not result(GBIT, **wrong).whole
    assert not result(GBIT, sent=False).whole


def test_four_fifths_of_the_highest_rate_that_held_are_recommended() -> None:
    found = concluded(held(GBIT), held(2 * GBIT), lost(3 * GBIT))
    assert found.highest is not None
    assert (found.highest.rate_bps, found.recommended_bps) == (2 * GBIT, 1_600_000_000)
    assert 'Set rate = "1600 Mbit/s" in [link], at both ends: 80% of it.' in found.advice
    assert "At 3 Gbit/s, the gap lost datagrams." in found.advice


def test_a_rate_above_one_that_lost_does_not_count() -> None:
    found = concluded(held(GBIT), lost(2 * GBIT), held(3 * GBIT))
    assert found.recommended_bps == 800_000_000


def test_where_the_lowest_rate_lost_nothing_is_recommended() -> None:
    for results in ([lost(GBIT), lost(2 * GBIT)], [lost(GBIT), held(2 * GBIT)]):
        found = concluded(*results)
        assert (found.highest, found.recommended_bps) == (None, None)
        assert "the lowest was 1 Gbit/s" in found.advice[0]
        assert "before this host" in found.advice[1]


def test_it_says_whether_this_host_or_the_gap_lost() -> None:
    found = concluded(held(GBIT), lost(2 * GBIT, kernel_drops=5))
    assert "At 2 Gbit/s, this host's receive buffer overflowed." in found.advice
    assert "receive buffer" in arrived_line(lost(2 * GBIT, kernel_drops=5))
    assert "a larger receive buffer" in concluded(lost(GBIT, kernel_drops=5)).advice[1]


def test_an_ingress_at_its_limit_counts_by_what_it_sent() -> None:
    found = concluded(held(GBIT), result(4 * GBIT, reached_bps=2 * GBIT))
    assert found.recommended_bps == 1_600_000_000
    assert "The ingress cannot send faster." in found.advice


def test_it_says_when_nothing_was_heard_and_when_nothing_was_lost() -> None:
    assert concluded().advice == ["Nothing was heard of an ingress that benches this link."]
    assert any("--rates" in sentence for sentence in concluded(held(GBIT)).advice)


def test_a_step_that_broke_off_is_shown_and_does_not_count_as_a_loss() -> None:
    broken = result(3 * GBIT, sent=False)
    assert arrived_line(broken).endswith("broke off")
    assert concluded(held(GBIT), broken).recommended_bps == 800_000_000
    assert step_facts(broken)["sent"] is None


def test_default_rates_are_around_the_configured_one() -> None:
    rates = default_rates(GBIT)
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (GBIT // 4, 3 * GBIT)
    assert GBIT in rates
    assert min(default_rates(10_000)) == 9600
    assert default_rates(0)[-1] == 10 * GBIT


@pytest.mark.parametrize(
    ("rate_bps", "text"),
    [(999, "999 bit/s"), (12_345, "12.3 kbit/s"), (2_345_678, "2.35 Mbit/s"), (9_999_000_000, "10 Gbit/s")],
)
def test_rates_are_short(rate_bps: int, text: str) -> None:
    assert short_rate(rate_bps) == text


def test_the_recommendation_is_a_rate_that_can_be_written() -> None:
    assert concluded(held(12_345)).recommended_bps == BitsPerSecond(9800)
