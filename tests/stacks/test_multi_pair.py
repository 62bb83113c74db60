"""Two pairs: what breaks one does not touch the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stacks.engine import Stack, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def partitions(stack: Stack, topic: str) -> list[str]:
    return [place for place in stack.arrived() if place.startswith(f"{topic}/")]


def test_multi_pair(start: Callable[[str], Stack]) -> None:
    stack = start("multi-pair")
    orders, payments = partitions(stack, "orders"), partitions(stack, "payments")
    assert len(orders) == len(payments) == 6

    # One egress dies: the other pair goes on, and hears of nothing.
    killed_ms = stack.kill("egress-a")
    stack.until_flowing(killed_ms + 5000, payments)
    places = stack.ledger()["partitions"]
    assert all(places[place]["last_ms"] < killed_ms + 5000 for place in orders)
    stack.note_outage("egress-a started after SIGKILL", stack.start("egress-a"), orders)

    # The other fibre is cut; and its ingress dies.
    stack.cut("gap-b")
    until(lambda: stack.page("egress-b", "/health")[0] == 503, "egress-b says that its link is interrupted")
    assert stack.page("egress-a", "/health")[0] == 200
    stack.note_outage("gap-b joined", stack.cut("gap-b"), payments)
    stack.kill("ingress-b")
    stack.note_outage("ingress-b started after SIGKILL", stack.start("ingress-b"), payments)

    # Neither has seen anything of the other.
    for egress in ("egress-a", "egress-b"):
        assert "wrong_link" not in stack.page(egress, "/status")[1]["dropped"]
    for egress, ingress in (("egress-a", "ingress-a"), ("egress-b", "ingress-b")):
        stack.repair(egress, ingress)
    stack.settle()
