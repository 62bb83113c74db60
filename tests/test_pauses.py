"""Who holds an ingress: owners do not take away each other's holds."""

from __future__ import annotations

import attrs
import pytest

from gapconn.pauses import HOLDS_MAX, Hold, Pauses, delivered_at


@attrs.define
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_it_runs_when_nobody_holds_it() -> None:
    pauses = Pauses()
    assert pauses.running.value
    assert pauses.hold("operator", "disk")
    assert not pauses.hold("monitor:a", "dead egress"), "it stood already"
    assert not pauses.running.value
    assert pauses.release("operator")
    assert not pauses.running.value, "the other one still holds it"
    assert pauses.release("monitor:a")
    assert pauses.running.value
    assert not pauses.release("monitor:a"), "there is none"


def test_holding_again_renews() -> None:
    clock = Clock()
    pauses = Pauses(clock=clock)
    pauses.hold("monitor:a", "dead")
    clock.now_s += 10
    pauses.hold("monitor:a", "hung")
    clock.now_s += 5
    [facts] = pauses.facts()
    assert facts == {"owner": "monitor:a", "reason": "hung", "for_s": 15.0, "renewed_s_ago": 5.0}


def test_only_the_hold_of_a_monitor_that_is_gone_may_be_taken_away_by_another() -> None:
    clock = Clock()
    pauses = Pauses(clock=clock)
    pauses.hold("monitor:a", "dead")
    pauses.hold("operator", "disk")
    clock.now_s += 30
    assert not pauses.release("monitor:a", unrenewed_s=31)
    assert pauses.release("monitor:a", unrenewed_s=30)
    clock.now_s += 1e6
    assert not pauses.release("operator", unrenewed_s=30), "that of a person stands"
    assert not pauses.running.value
    assert [hold.owner for hold in pauses.release_all()] == ["operator"]
    assert pauses.running.value


def test_holds_stand_over_a_restart() -> None:
    before = Pauses()
    before.hold("operator", "disk")
    after = Pauses(before.holds)
    assert not after.running.value
    assert [hold.reason for hold in after.holds] == ["disk"]


def test_names_cannot_fill_the_memory() -> None:
    pauses = Pauses(Hold(owner=f"monitor:{n}", reason="", since_s=n, renewed_s=n) for n in range(HOLDS_MAX))
    pauses.hold("monitor:0", "again")
    with pytest.raises(ValueError, match="64 others"):
        pauses.hold("monitor:new", "one more")


def test_where_an_egress_stands_is_found_with_its_cluster_or_without() -> None:
    positions = {"c/t/0": 5, "/t/1": 6, "other/t/2": 7}
    assert [delivered_at(positions, "c", "t", n) for n in range(3)] == [5, 6, None]
