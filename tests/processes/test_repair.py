"""Forward error correction end to end: a gap that loses datagrams between two real processes, and no data is lost."""

from __future__ import annotations

import pytest
import trio

from gapconn.testing.gap import FaultPlan, GapCounts, relay
from tests.processes.ends import Ends

# All messages have about 170 symbols, so that their repair symbols are many. One that has a single one is lost with it
# and its only repair symbol now and then.
GENERATE = 'type = "generate"\nsize_bytes = 40_000'


@pytest.mark.req("GC-FEC-3")
async def test_a_tenth_of_the_datagrams_is_lost_and_no_record(ends: Ends) -> None:
    ends.configure(GENERATE, 'type = "discard"', rate="40 Mbit/s", fec={"repair": "50%"})
    ends.remember_a_session()
    target = ends.free_address()
    counts = GapCounts()
    async with trio.open_nursery() as nursery:
        await nursery.start(relay, ends.address, target, FaultPlan(drop=0.1, corrupt=0.01, seed=7), counts)
        egress = await ends.egress(environ={"GAPCONN_LINK_BIND": str(target)})
        ingress = await ends.ingress()
        status = await egress.until_status(lambda s: s["received"]["records"] >= 300, "300 records arrived")
        sent = await ingress.status()
        await ingress.kill()
        nursery.cancel_scope.cancel()
    assert (status["missed"]["messages"], status["missed"]["records"]) == ({}, 0)
    assert status["sink"]["missing"] == status["sink"]["damaged"] == 0
    received = status["received"]
    assert received["messages_rebuilt"] >= received["messages"] * 9 // 10
    assert received["symbols_rebuilt"] > received["messages"]
    assert status["missed"]["datagrams"] > 0, "what was rebuilt was lost on the way all the same"
    assert status["dropped"]["bad_check"] > 0
    assert counts.dropped > 500
    assert sent["sent"]["repair_symbols"] * 2 >= sent["sent"]["datagrams"] // 2
    assert (sent["repair"], sent["fec_backend"], status["fec_backend"]) == ("50%", "isa-l (wheel)", "isa-l (wheel)")
    (started,) = ingress.logged("ingress_started")
    assert (started["repair"], started["fec_backend"]) == ("50%", "isa-l (wheel)")


async def test_without_repair_symbols_each_loss_costs_a_message(ends: Ends) -> None:
    ends.configure(GENERATE, 'type = "discard"', rate="40 Mbit/s", fec={"repair": "0%"})
    ends.remember_a_session()
    target = ends.free_address()
    async with trio.open_nursery() as nursery:
        await nursery.start(relay, ends.address, target, FaultPlan(drop=0.005, seed=7), GapCounts())
        egress = await ends.egress(environ={"GAPCONN_LINK_BIND": str(target)})
        ingress = await ends.ingress()
        status = await egress.until_status(lambda s: s["missed"]["records"] > 0, "records are lost")
        assert (await ingress.status())["sent"]["repair_symbols"] == 0
        nursery.cancel_scope.cancel()
    assert status["received"]["messages_rebuilt"] == 0
    assert set(status["missed"]["messages"]) == {"gap"}
