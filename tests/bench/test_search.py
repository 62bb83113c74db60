"""The search for the highest rate at which nothing is lost, with a link whose limits are known."""

from __future__ import annotations

import pytest

from bench.measure import Figure
from bench.search import highest_rate


class Link:
    """Loses something above `limit_bps`; its ingress sends `ingress_bps` at most."""

    def __init__(self, limit_bps: float, ingress_bps: float = 1e12) -> None:
        self.limit_bps = limit_bps
        self.ingress_bps = ingress_bps
        self.tried: list[int] = []

    def carry(self, rate_bps: int) -> Figure:
        self.tried.append(rate_bps)
        sent_bps = min(rate_bps, self.ingress_bps)
        return Figure(
            what="", value=sent_bps / 1e9, unit="Gbit/s", lost=int(sent_bps > self.limit_bps) * 7, rate_bps=rate_bps
        )


@pytest.mark.parametrize("limit_bps", [0.5e9, 3.9e9, 4.1e9, 12.8e9])
def test_the_limit_is_found_from_a_guess_that_is_far_off(limit_bps: float) -> None:
    link = Link(limit_bps)
    found = highest_rate(link.carry, 4_000_000_000, trials_max=9, growth=1.5)
    assert not found.lost
    assert limit_bps / 1.07 <= found.rate_bps <= limit_bps
    assert [trial["rate_bps"] for trial in found.detail["trials"]] == link.tried


def test_a_good_guess_needs_few_trials() -> None:
    link = Link(4.1e9)
    found = highest_rate(link.carry, 4_000_000_000, trials_max=3, growth=1.1)
    assert found.rate_bps >= 4_000_000_000
    assert len(link.tried) <= 3


def test_it_ends_where_more_rate_is_not_more_payload() -> None:
    link = Link(8e9, ingress_bps=5e9)
    found = highest_rate(link.carry, 4_000_000_000, trials_max=9, growth=1.5)
    assert found.value == 5.0
    assert len(link.tried) == 3


def test_where_every_rate_loses_it_says_so() -> None:
    link = Link(1)
    found = highest_rate(link.carry, 4_000_000_000, trials_max=4, growth=1.5)
    assert found.lost == 7
    assert len(link.tried) == 4
    assert found.rate_bps == link.tried[-1] < 4_000_000_000
