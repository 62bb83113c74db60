"""Who sends what is dropped is remembered, within a bound, whoever makes noise beside them."""

from __future__ import annotations

import random

import pytest

from gapconn.protocol.registry import DropReason
from gapconn.protocol.strangers import STRANGERS_MAX, Strangers


@pytest.mark.req("GC-LIM-1")
def test_a_flood_of_random_senders_does_not_displace_a_steady_one() -> None:
    strangers, chance = Strangers(), random.Random(5)
    for now in range(2000):
        strangers.heard(DropReason.FOREIGN_LINK, chance.randrange(2**32), f"h:{now}", 1, now)
        strangers.heard(DropReason.FOREIGN_LINK, chance.randrange(2**32), f"g:{now}", 1, now)
        if now % 10 == 0:
            strangers.heard(DropReason.FOREIGN_LINK, 7, "steady:1", 3, now)
            strangers.heard(DropReason.FOREIGN_LINK, 7, "steady:1", 3, now)
    found = list(strangers)
    assert len(found) <= STRANGERS_MAX
    (steady,) = [each for each in found if each.identity == 7]
    assert (steady.came_from, steady.datagrams) == ("steady:1", 1200)
    assert (steady.first_heard_s, steady.last_heard_s) == (0, 1990)


def test_each_reason_has_its_own_room() -> None:
    strangers = Strangers()
    for number in range(100):
        strangers.heard(DropReason.BAD_CHECK, 0, f"h:{number}", 1, number)
    strangers.heard(DropReason.CONFLICT, 9, "rival:1", 1, 200)
    strangers.heard(DropReason.STALE_SESSION, 9, "old:1", 1, 150)
    assert sum(each.reason is DropReason.BAD_CHECK for each in strangers) == STRANGERS_MAX
    assert next(iter(strangers)).came_from == "rival:1", "who was heard last comes first"
    rivals = frozenset({DropReason.CONFLICT, DropReason.STALE_SESSION})
    assert strangers.address_of(rivals, 9) == "rival:1"
    assert strangers.address_of(rivals, 8) == ""
