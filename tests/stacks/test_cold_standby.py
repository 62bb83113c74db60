"""One pair that the engine starts again whenever an end crashes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stacks.engine import Stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def test_cold_standby(start: Callable[[str], Stack]) -> None:
    stack = start("cold-standby")

    for service in ("ingress-a", "egress-a"):
        crashed_ms = stack.crash(service)
        stack.note_outage(f"{service} crashed", crashed_ms)
        state = stack.inspect(service)
        assert state["State"]["Running"]
        assert state["RestartCount"] == 1

    # An ingress that remembers its last session need not wait before it sends.
    assert '"announcing_s": 0' in next(line for line in reversed(stack.logs("ingress-a")) if "ingress_started" in line)

    # Its source away for a while: it waits, and reads on.
    stack.note_outage("source broker restarted", stack.restart("kafka-source"))

    # What the egress missed while it was dead.
    stack.repair("egress-a", "ingress-a")
    stack.settle()
