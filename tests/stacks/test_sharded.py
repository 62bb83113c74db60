"""Three pairs of one group, and a monitor: when an end dies, other pairs take over, and nothing is missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from tests.stacks.engine import Stack, now_ms, until

SETTLED_MS = 8_000
"""Longer than the session timeout of a member."""

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def working(stack: Stack, pair: str) -> bool:
    return stack.page(f"ingress-{pair}", "/ready")[0] == 200


def paused(stack: Stack, pair: str) -> bool:
    status = stack.page(f"ingress-{pair}", "/status")[1]
    return status is not None and any("monitor" in hold["owner"] for hold in status["paused"]["holds"])


def wait_settled(stack: Stack) -> None:
    """Wait until every pair works, and no partition has moved for a while: one fault at a time."""
    for pair in "abc":
        until(partial(working, stack, pair), f"pair {pair} works")
    moves, since_ms = -1, now_ms()

    def settled() -> bool:
        nonlocal moves, since_ms
        now = sum("partition_assigned" in line for pair in "abc" for line in stack.logs(f"ingress-{pair}"))
        if now != moves:
            moves, since_ms = now, now_ms()
        return now_ms() - since_ms > SETTLED_MS

    until(settled, "no partition moves")


def resend_what_could_not_be_rewound(stack: Stack, since_ms: int) -> None:
    """What an operator does where the log of an ingress says `rewind_missed`: a partition was moved in the moment in
    which its egress died."""
    missed = [line for pair in "abc" for line in stack.logs(f"ingress-{pair}") if "rewind_missed" in line]
    stack.figures["rewinds missed"] = len(missed)
    if missed:
        begin, end = (datetime.fromtimestamp(ms / 1000, UTC).isoformat() for ms in (since_ms, now_ms()))
        times = "--topic", "orders", "--from", begin, "--to", end
        stack.execute("ingress-a", "gapconn", "resend", "--again", *times, "/etc/gapconn/pair.toml")


def test_sharded(start: Callable[[str], Stack]) -> None:
    begun_ms = now_ms()
    stack = start("sharded")
    wait_settled(stack)

    # An ingress dies: Kafka gives its partitions to the others.
    stack.note_outage("ingress-a killed", stack.kill("ingress-a"))
    stack.start("ingress-a")
    wait_settled(stack)

    # An egress dies: the monitor pauses its ingress, which goes back to what was delivered.
    killed_ms = stack.kill("egress-b")
    until(lambda: paused(stack, "b"), "ingress-b is paused")
    stack.figures["egress-b killed: ingress-b paused"] = round((now_ms() - killed_ms) / 1000, 1)
    stack.note_outage("egress-b killed", killed_ms)
    stack.start("egress-b")
    wait_settled(stack)

    # An egress hangs, with its socket open.
    with stack.paused("egress-c"):
        until(lambda: paused(stack, "c"), "ingress-c is paused")
    wait_settled(stack)

    # A fibre is cut: the egress says so, and its pair is taken out.
    stack.cut("gap-a")
    until(lambda: paused(stack, "a"), "ingress-a is paused")
    stack.cut("gap-a")
    wait_settled(stack)

    resend_what_could_not_be_rewound(stack, begun_ms)
    stack.settle()
