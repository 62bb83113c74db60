"""Three pairs of one group, and a monitor: when an end dies, other pairs take over, and nothing is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.stacks.engine import Stack, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def working(stack: Stack, pair: str) -> bool:
    return stack.page(f"ingress-{pair}", "/ready")[0] == 200


def paused(stack: Stack, pair: str) -> bool:
    status = stack.page(f"ingress-{pair}", "/status")[1]
    return status is not None and any("monitor" in hold["owner"] for hold in status["paused"]["holds"])


def test_sharded(start: Callable[[str], Stack]) -> None:
    stack = start("sharded")
    for pair in "abc":
        until(partial(working, stack, pair), f"pair {pair} works")

    # An ingress dies: Kafka gives its partitions to the others.
    stack.note_outage("ingress-a killed", stack.kill("ingress-a"))
    stack.start("ingress-a")
    until(lambda: working(stack, "a"), "ingress-a works again")

    # An egress dies: the monitor pauses its ingress, which goes back to what was delivered.
    killed_ms = stack.kill("egress-b")
    until(lambda: paused(stack, "b"), "ingress-b is paused")
    stack.note_outage("egress-b killed", killed_ms)
    stack.start("egress-b")
    until(lambda: working(stack, "b"), "ingress-b works again")

    # An egress hangs, with its socket open.
    with stack.paused("egress-c"):
        until(lambda: paused(stack, "c"), "ingress-c is paused")
    until(lambda: working(stack, "c"), "ingress-c works again")

    # A fibre is cut: the egress says so, and its pair is taken out.
    stack.cut("gap-a")
    until(lambda: paused(stack, "a"), "ingress-a is paused")
    stack.cut("gap-a")

    stack.settle()
