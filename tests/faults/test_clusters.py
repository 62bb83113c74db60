"""The clusters fail: brokers are killed and started again, the group is rebalanced, and the target is away for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from gapconn.units import Address
from tests.faults.pair import KafkaPair
from tests.faults.proxy import proxy
from tests.faults.scale import SCALE
from tests.faults.sides import Sides, sides
from tests.processes.ends import Ends


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Brokers of this module's own, since they are killed."""
    with sides(tmp_path_factory.mktemp("clusters")) as both:
        yield both


@pytest.mark.kafka
@pytest.mark.timeout(3 * 3600)
@pytest.mark.req("GC-DLV-1", "GC-DLV-14", "GC-DLV-15")
async def test_brokers_killed_and_a_rebalance_in_the_middle(ends: Ends, clusters: Sides, delivery: str) -> None:
    """While brokers die and come back, a second pair joins the group, takes partitions over, and leaves again."""
    pair = await KafkaPair.make(ends, clusters.source, clusters.target, delivery, records_per_second=500, seed=21)
    pair.configure(interruption_timeout="30s")
    await pair.begin()
    second = pair
    async with pair.loaded():
        await pair.flows()
        for number in range(SCALE.broker_kills):
            if number == SCALE.broker_kills // 2:
                second = await pair.join()
            for name, node in clusters.nodes:
                await trio.sleep(pair.chance.uniform(0, 1.0))
                await trio.to_thread.run_sync(node.kill)
                pair.count(f"SIGKILL of {name}")
                await trio.sleep(pair.chance.uniform(0, 2.0))
                await trio.to_thread.run_sync(node.start)
            await pair.sends_on()
        await second.leave()
        await pair.sends_on()
    account = await pair.close("brokers killed, group rebalanced", second.ends, one_link=False)
    assert account.once + account.twice == account.produced, "the ends lived on, so nothing is lost"


@pytest.mark.kafka
@pytest.mark.timeout(3600)
@pytest.mark.req("GC-DLV-19", "GC-DLV-20", "GC-DLV-23")
async def test_the_target_is_away_at_full_rate(ends: Ends, clusters: Sides, delivery: str) -> None:
    """The spool fills while nobody can be reached, and drains in order."""
    way_in = clusters.proxy_listens
    pair = await KafkaPair.make(
        ends, clusters.source, clusters.target, delivery,
        records_per_second=SCALE.away_records_per_second, target_address=str(way_in), seed=22,
    )  # fmt: skip
    pair.configure(spool='after = "50ms"', sink_buffer_bytes="1 MiB", message_bytes_max="1 MiB")
    async with proxy(way_in, Address(clusters.target_listener.host, clusters.target_listener.port)) as way:
        await pair.begin()
        async with pair.loaded():
            await pair.flows()
            await pair.sends_on()
            way.cut()
            pair.count("target away, s", round(SCALE.away_s))
            await trio.sleep(SCALE.away_s)
            away = await pair.egress.until_status(
                lambda s: s["spool"]["messages"] > 10, "the spool has what the target has not"
            )
            await way.mend()
        assert away["spool"]["bytes"] > 0
        account = await pair.close("target away at full rate")
        assert not pair.egress.logged("messages_refused")
    assert account.once == account.produced
