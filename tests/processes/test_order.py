"""What two real processes make of a gap that loses and reorders, in either order: every record once, or reported."""

from __future__ import annotations

import pytest
import trio

from gapconn.testing.gap import FaultPlan, GapCounts, relay
from tests.processes.ends import Ends

RECORDS = 4_000
GENERATE = f'type = "generate"\nsize_bytes = 1_000\ncount = {RECORDS}'


@pytest.mark.req("GC-DLV-8", "GC-DLV-13", "GC-DLV-35", "GC-MOD-4")
@pytest.mark.parametrize("order", ["strict", "available"])
async def test_every_record_is_delivered_once_or_reported(ends: Ends, order: str) -> None:
    ends.configure(
        GENERATE,
        'type = "discard"',
        rate="20 Mbit/s",
        batch_bytes="4 KiB",
        order=order,
        hold="200ms",
        fec={"repair": "0%"},
        interruption_timeout="60s",
    )
    ends.remember_a_session()
    target = ends.free_address()
    # Some are held back for less than the hold, and some for more: those come after they were given up.
    plan = FaultPlan(drop=0.01, reorder=0.05, reorder_depth=300, reorder_hold_s=0.5, seed=11)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay, ends.address, target, plan, GapCounts())
        egress = await ends.egress(environ={"GAPCONN_LINK_BIND": str(target)})
        ingress = await ends.ingress()
        assert await ingress.ended() == 0

        # Positions are dense here, so what is not at the sink must be open in the journal, and nothing else.
        status = await egress.until_status(
            lambda s: (
                s["sink"]["received"] + s["journal"]["positions_missing"] == RECORDS
                and s["journal"]["records_late"] > 0
            ),
            "all that was sent is delivered or reported, and some of it came late",
        )
        nursery.cancel_scope.cancel()
    assert await egress.stop() == 0
    (told,) = egress.logged("discard_finished")
    assert (told["duplicates"], told["damaged"]) == (0, 0)
    assert status["journal"]["positions_missing"] > 0
    assert status["journal"]["records_late"] > 0
    if order == "available":
        assert told["reordered"] > 0
    else:
        # More may have come after the status.
        assert told["reordered"] <= egress.total("records_late")
