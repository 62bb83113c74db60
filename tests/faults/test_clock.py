"""The clock steps back: the next session still comes behind the one before, and nothing is lost for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from gapconn.config import Link
from gapconn.store.state import IngressState
from tests.faults.pair import KafkaPair
from tests.kafka.cluster import Cluster
from tests.processes.ends import Ends

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1800)]

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
"""Debian's libfaketime, which makes a process see another clock."""
HOUR_S = 3600


@pytest.mark.req("GC-SESS-1", "GC-SESS-6")
async def test_a_session_behind_one_of_the_future(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """The stored epoch is of a clock that was an hour ahead."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    pair.configure()
    future = int((time.time() + HOUR_S) * 1_000_000)
    link = Link(name="orders", address=ends.address)
    with IngressState.open(ends.directory / "state", link.name, link.id) as state:
        state.begin_session(future)
    await pair.begin()
    pair.count("clock an hour behind the stored epoch")
    async with pair.loaded():
        await pair.flows()
        await pair.committed_once()
        await pair.kill("ingress")
        pair.start("ingress")
        await pair.sends_on()
    account = await pair.close("stored epoch of the future")
    epochs = [entry["epoch"] for entry in pair.egress.logged("session_followed")]
    assert epochs == [future + 1, future + 2]
    assert account.once == account.produced


@pytest.mark.req("GC-SESS-1", "GC-SESS-6")
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install libfaketime)")
async def test_the_clock_steps_back_while_they_run(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """Both clocks go back by an hour under load, and then the ingress is killed."""
    clock = ends.directory / "clock"
    clock.write_text("+0")
    ends.environ |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    pair.configure()
    await pair.begin()
    async with pair.loaded():
        await pair.flows()
        began = pair.egress.log[-1]["timestamp"]
        clock.write_text("-1h")
        pair.count("clock stepped back by an hour")
        await pair.sends_on()
        await trio.sleep(pair.chance.uniform(0, 1.0))
        await pair.committed_once()
        await pair.kill("ingress")
        pair.start("ingress")
        await pair.sends_on()
    account = await pair.close("clock stepped back by an hour")
    first, second = pair.egress.logged("session_followed")
    assert second["timestamp"] < began, "the clock of the processes did step"
    assert second["epoch"] == first["epoch"] + 1, "as the clock says nothing useful"
    assert account.once == account.produced
