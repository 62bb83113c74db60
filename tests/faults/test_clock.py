"""The clock steps back: the next session still comes behind the one before, and nothing is lost for it."""

from __future__ import annotations

import os
import time

import pytest

from tests.faults.pair import KafkaPair
from tests.kafka.cluster import Cluster
from tests.processes.ends import Ends

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(1800)]

HOUR_S = 3600

# libfaketime cannot do this: under it, CPython's waits for its own locks fail or never end.
CLOCK = """
import pathlib, time

real_ns = time.time_ns

def stepped_ns():
    return real_ns() - int(pathlib.Path({file!r}).read_text())

time.time_ns = stepped_ns
time.time = lambda: stepped_ns() / 1e9
"""


@pytest.mark.req("GC-SESS-1", "GC-SESS-6")
async def test_a_session_behind_one_of_the_future(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """The stored epoch is of a clock that was an hour ahead."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    future = pair.previous_epoch = int((time.time() + HOUR_S) * 1_000_000)
    pair.configure()
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
async def test_the_clock_steps_back_while_they_run(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """The clocks of both processes go back by an hour under load, and then the ingress is killed."""
    behind = ends.directory / "behind"
    behind.write_text("0")
    site = ends.directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK.format(file=str(behind)))
    ends.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    pair.configure()
    await pair.begin()
    async with pair.loaded():
        await pair.flows()
        behind.write_text(str(HOUR_S * 10**9))
        pair.count("clock stepped back by an hour")
        await pair.sends_on()
        await pair.committed_once()
        await pair.kill("ingress")
        pair.start("ingress")
        await pair.sends_on()
    account = await pair.close("clock stepped back by an hour")
    first, second = (entry["epoch"] for entry in pair.egress.logged("session_followed"))
    assert second == first + 1, "the clock says nothing useful"
    assert account.once == account.produced
