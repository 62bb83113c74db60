"""Two pairs with the same records and a deduplicator: any one thing breaks, and every record comes, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stacks.engine import Stack, now_ms

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def test_redundant(start: Callable[[str], Stack]) -> None:
    stack = start("redundant")

    # An ingress, an egress and a gap, one after the other, now of this pair and now of that: the other one carries all.
    broken: list[tuple[str, Callable[[str], int], Callable[[str], int], str]] = [
        ("egress-a", stack.kill, stack.start, "a"),
        ("ingress-b", stack.kill, stack.start, "b"),
        ("gap-a", stack.cut, stack.cut, "a"),
    ]
    for service, breaks, mends, pair in broken:
        broken_ms = breaks(service)
        stack.note_outage(f"{service} broken", broken_ms)
        mends(service)
        stack.until_delivering(f"egress-{pair}")

    # The deduplicator itself: the engine starts it again, and it knows what it has passed.
    crashed_ms = stack.crash("dedup")
    stack.note_outage("dedup crashed", crashed_ms)
    assert stack.inspect("dedup")["RestartCount"] == 1
    stack.until_flowing(now_ms())

    account = stack.settle()
    assert account["copies"] == 0
