"""The ledger itself: it sees what it is there to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import pytest

from tests.faults.ledger import Account
from tests.faults.records import make_value, read_value


@attrs.frozen
class Delivered:
    """What the ledger asks of a message of the target topic."""

    the_value: bytes
    the_offset: int
    sequence: int
    repair: bool = False

    def value(self) -> bytes:
        return self.the_value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.the_offset

    def headers(self) -> list[tuple[str, bytes]]:
        origin = ("gapconn-origin", b"cluster/t/0/%d" % self.sequence)
        return [origin, ("gapconn-repair", b"1")] if self.repair else [origin]


def account(
    sequences: Iterable[int],
    *,
    produced: int = 5,
    missing: Iterable[tuple[int, int]] = (),
    repairs: frozenset[int] = frozenset(),
    counted: int = 0,
) -> Account:
    """The account of one partition with these deliveries."""
    delivered: list[Any] = [
        Delivered(make_value("t", 0, n), offset, n, n in repairs) for offset, n in enumerate(sequences)
    ]
    place = {"stream": "t", "partition": 0, "ranges": list(missing)}
    journal = [{"records": counted, "missing": [place], "repaired": [], "gone": []}]
    return Account.of("test", "exactly-once", {0: produced}, "t", delivered=delivered, journal=journal, faults={})


def sums(found: Account) -> tuple[int, int, int, int, int]:
    return found.once, found.twice, found.lost, found.unaccounted, found.disordered


def test_everything_once() -> None:
    found = account(range(5))
    assert sums(found) == (5, 0, 0, 0, 0)
    found.settle()


def test_a_loss_is_reported_or_unaccounted() -> None:
    found = account([0, 3], missing=[(1, 1), (3, 3)])
    assert sums(found) == (2, 0, 1, 2, 0)
    assert found.false_alarms == 1
    with pytest.raises(AssertionError):
        found.settle()


def test_a_loss_without_a_place_is_allowed_only_where_nobody_can_know_it() -> None:
    found = account([0, 3], missing=[(1, 1)], counted=2)
    assert (found.lost, found.placeless, found.unaccounted) == (1, 1, 1)
    found = account([0, 3], missing=[(1, 1)], counted=5)
    assert (found.lost, found.placeless, found.unaccounted) == (1, 2, 0)
    found.settle(places=False)
    with pytest.raises(AssertionError):
        found.settle()


def test_twice_is_no_more_than_once() -> None:
    found = account([0, 1, 2, 1, 2, 3, 4])
    assert sums(found) == (3, 2, 0, 0, 0), "a stream that goes back and comes again is in order"
    with pytest.raises(AssertionError):
        found.settle()
    attrs.evolve(found, delivery="at-least-once").settle()


@pytest.mark.parametrize(("sequences", "disordered"), [([0, 2, 1, 3, 4], 1), ([3, 4, 0, 1, 2], 3), ([2, 0, 1, 2], 0)])
def test_order(sequences: list[int], disordered: int) -> None:
    found = attrs.evolve(account(sequences), delivery="at-least-once", unaccounted=0)
    assert found.disordered == disordered


def test_a_repair_may_come_late() -> None:
    found = account([0, 2, 3, 4, 1], repairs=frozenset({1}))
    assert sums(found) == (5, 0, 0, 0, 0)
    assert found.repaired == 1
    found.settle()


def test_a_record_proves_itself() -> None:
    value = make_value("t", 3, 17)
    assert read_value(value) == ("t", 3, 17)
    assert read_value(value[:-1]) is None
    assert read_value(value.replace(b"t/3/17", b"t/3/18")) is None
    assert read_value(None) is None
    assert len({len(make_value("t", 0, n)) for n in range(100)}) > 50
