"""SIGKILL and SIGSTOP of either end or both, at random moments under load."""

from __future__ import annotations

import pytest
import trio

from tests.faults.pair import KafkaPair
from tests.faults.scale import SCALE
from tests.kafka.cluster import Cluster
from tests.processes.ends import Ends

VICTIMS = (("ingress", "egress"), ("egress",), ("ingress",))


async def _until_killed(pair: KafkaPair, *roles: str) -> None:
    """Let records flow, mostly, and kill these ends at a moment that chance chooses; then start them again."""
    when = pair.chance.random()
    if when < 0.5:
        await pair.flows()
        await pair.accepts()
        await trio.sleep(pair.chance.uniform(0, 1.5))
    elif when < 0.8:  # perhaps before the sink has accepted anything
        await pair.flows()
        await trio.sleep(pair.chance.uniform(0, 1.0))
    else:  # also while they start
        await trio.sleep(pair.chance.uniform(0, 1.0))
    await pair.kill(*roles)
    pair.count("SIGKILL of " + " and ".join(roles))
    for role in pair.chance.sample(roles, len(roles)):
        await trio.sleep(pair.chance.choice([0.0, pair.chance.uniform(0, 0.5)]))
        pair.start(role)


@pytest.mark.kafka
@pytest.mark.timeout(3 * 3600)
@pytest.mark.req("GC-DLV-1", "GC-DLV-14", "GC-DLV-15", "GC-DLV-18", "GC-DLV-19", "GC-DLV-20", "GC-SESS-6")
async def test_killed_at_random_moments(ends: Ends, kafka: Cluster, delivery: str) -> None:
    pair = await KafkaPair.make(ends, kafka, kafka, delivery, seed=11)
    pair.configure(interruption_timeout="30s")
    await pair.begin()
    async with pair.loaded():
        await pair.committed_once()
        for number in range(SCALE.kills):
            # The short form has the first ones; after all of them, chance goes on.
            await _until_killed(pair, *(VICTIMS[number] if number < len(VICTIMS) else pair.chance.choice(VICTIMS)))
        await pair.flows()
    account = await pair.close("ends killed")
    assert account.once + account.twice > 0

    # What was sent while no egress was there is in the journal.
    await pair.begin_egress()
    await pair.resend()
    await pair.egress_until(lambda s: s["journal"]["positions_missing"] == 0, "everything was repaired")
    assert await pair.egress.stop() == 0
    account = await pair.account("ends killed, then resent")
    assert account.once + account.twice == account.produced


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_stopped_for_seconds(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """A process that stands still is late, and loses at most what the kernel cannot hold for it."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery, seed=12)
    pair.configure()
    await pair.begin()
    async with pair.loaded():
        await pair.flows()
        for number in range(SCALE.stops):
            role = ("ingress", "egress")[number % 2]
            await pair.stop_for(role, pair.chance.uniform(1.1, SCALE.stop_s))  # longer than the interruption timeout
            pair.count(f"SIGSTOP of {role}")
            await trio.sleep(pair.chance.uniform(0, 1.0))
    account = await pair.close("ends stopped for seconds")
    assert (account.twice, account.lost) == (0, 0)
