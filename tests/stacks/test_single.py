"""One pair in containers: nothing gets back, and what is lost on the way is sent again until nothing is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stacks.engine import Stack, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

CONNECT = """
import socket, sys
for host in sys.argv[1:]:
    try:
        socket.create_connection((host, 9464), timeout=3).close()
    except OSError as error:
        print(host, "refused", error)
    else:
        print(host, "reached")
"""


def addresses(stack: Stack, service: str) -> list[str]:
    return [network["IPAddress"] for network in stack.inspect(service)["NetworkSettings"]["Networks"].values()]


def test_single(start: Callable[[str], Stack]) -> None:
    stack = start("single")

    # The way back is blocked: what the source side reaches, the destination side does not.
    ingress = addresses(stack, "ingress-a")
    assert len(ingress) == 2
    near = stack.execute("load", "python", "-c", CONNECT, *ingress)
    assert near.count("reached") == 1, near
    far = stack.execute("egress-a", "python", "-c", CONNECT, *ingress)
    assert far.count("refused") == 2, far
    assert "reached" not in far

    # As hardened as it says: not root, nothing writable but the state.
    assert stack.execute("egress-a", "id", "-u").strip() == "10001"
    assert "Read-only" in stack.execute("egress-a", "sh", "-c", "touch /var/lib/gapconn/x && touch /x 2>&1 || true")

    # The fibre is cut: an alarm, but no reason to restart anything.
    stack.cut("gap-a")
    until(lambda: stack.page("egress-a", "/health")[0] == 503, "the egress says that the link is interrupted")
    assert stack.page("egress-a", "/live")[0] == 200
    joined_ms = stack.cut("gap-a")
    stack.note_outage("gap joined", joined_ms)

    # The egress dies, and comes again.
    stack.kill("egress-a")
    stack.note_outage("egress started after SIGKILL", stack.start("egress-a"))

    # The egress stands still for a moment; the target's broker is restarted; the ingress dies.
    with stack.paused("egress-a"):
        pass
    stack.note_outage("target broker restarted", stack.restart("kafka-destination"))
    stack.kill("ingress-a")
    stack.note_outage("ingress started after SIGKILL", stack.start("ingress-a"))

    # What the gap swallowed, and what a dead egress missed, is in the journal, and comes when it is asked for.
    assert stack.open_gaps("egress-a") > 0
    assert stack.ledger()["missing"] > 0
    stack.repair("egress-a", "ingress-a")
    stack.settle()
