"""Loss, bursts, reorder, duplication and damage on the way: rebuilt, or reported, or sent again."""

from __future__ import annotations

import random

import attrs
import pytest
import trio

from tests.faults.gap import gap
from tests.faults.pair import KafkaPair
from tests.faults.scale import SCALE
from tests.kafka.cluster import Cluster
from tests.processes.ends import Ends


@attrs.frozen(kw_only=True)
class BadLink:
    """What the gap does, and how much repair stands against it."""

    name: str
    faults: tuple[str, ...]
    repair: str
    lost_at_most: float
    """Share of the records for which the repair symbols are not enough: small messages have few of them."""
    loses: bool = False
    """They are certain not to be enough for all."""


LINKS = (
    BadLink(name="1 % loss", faults=("--drop", "0.01"), repair="20%", lost_at_most=0.02),
    BadLink(name="5 % loss", faults=("--drop", "0.05"), repair="40%", lost_at_most=0.02),
    BadLink(name="20 % loss", faults=("--drop", "0.2"), repair="100%", lost_at_most=0.02),
    BadLink(name="20 % loss, little repair", faults=("--drop", "0.2"), repair="20%", lost_at_most=1.0, loses=True),
    BadLink(name="bursts of 20", faults=("--burst", "20", "--burst-every", "500"), repair="50%", lost_at_most=0.2),
    BadLink(
        name="reorder and duplication",
        faults=("--reorder", "0.1", "--reorder-depth", "30", "--duplicate", "0.1"),
        repair="5%",
        lost_at_most=0.0,
    ),
    BadLink(name="corruption", faults=("--corrupt", "0.02"), repair="25%", lost_at_most=0.02),
    BadLink(
        name="everything at once",
        faults=(
            "--drop", "0.03", "--burst", "10", "--burst-every", "2000", "--reorder", "0.05", "--duplicate", "0.05",
            "--corrupt", "0.01",
        ),
        repair="1%",
        lost_at_most=1.0,
        loses=True,
    ),
)  # fmt: skip
SHORT_FORM = "everything at once"
"""It stands for all of them in the short form."""
CHOSEN = [link for link in LINKS if SCALE.is_long or link.name == SHORT_FORM]


@pytest.mark.kafka
@pytest.mark.timeout(3600)
@pytest.mark.req("GC-DLV-4", "GC-DLV-6", "GC-DLV-10", "GC-DLV-13", "GC-DLV-14")
@pytest.mark.parametrize("link", CHOSEN, ids=lambda link: link.name)
async def test_over_a_bad_link(ends: Ends, kafka: Cluster, delivery: str, link: BadLink) -> None:
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    async with gap(ends, [*link.faults, "--seed", "7"]) as way:
        pair.configure(
            bind=str(way.listens),
            batch_bytes="64 KiB",
            rate="50 Mbit/s",
            fec={"repair": link.repair},
            interruption_timeout="30s",
        )
        # Much is there before anything is sent, so that most messages are full.
        await pair.produce(SCALE.lossy_records)
        await pair.begin()
        await pair.sent()
        way.toggle_faults()
        await pair.finish()
        done = await way.end()
    for harm in ("dropped", "reordered", "duplicated", "corrupted"):
        if done[harm]:
            pair.count(f"datagrams {harm}", done[harm])
    assert pair.faults, "the gap did nothing"
    account = await pair.account(link.name)
    assert not account.twice
    assert account.lost <= link.lost_at_most * account.produced
    if link.loses:
        assert account.lost, "this case is about loss that is reported"


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_what_was_lost_is_repeated(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """A bad link without repair symbols, and every message is sent twice more: the target is complete by itself."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    async with gap(ends, ["--drop", "0.05", "--seed", "8"]) as way:
        pair.configure(
            bind=str(way.listens),
            batch_bytes="32 KiB",
            rate="50 Mbit/s",
            fec={"repair": "0%"},
            repeat=["2s", "20s"],
            interruption_timeout="30s",
        )
        await pair.produce(SCALE.lossy_records)
        await pair.begin()
        await pair.sent()
        way.toggle_faults()
        await pair.produce(40)
        await pair.egress_until(lambda s: s["missed"]["records"] > 0, "something was lost")
        # The last repeat of the last message comes when the link is good again.
        await pair.egress_until(lambda s: s["journal"]["positions_missing"] == 0, "everything was repeated")
        account = await pair.close("5 % loss, repeated")
    assert account.once == account.produced
    assert account.repaired > 0


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.req("GC-RPR-1", "GC-RPR-5", "GC-RPR-6", "GC-RPR-7")
async def test_what_was_lost_is_resent_under_load(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """A bad link with outages and without repair symbols; in the end the target is complete, each record once."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery, records_per_second=1_000)
    chance = random.Random(5)
    async with gap(ends, ["--drop", "0.01", "--calm", "--seed", "9"]) as way:
        pair.configure(bind=str(way.listens), batch_bytes="16 KiB", fec={"repair": "0%"}, interruption_timeout="30s")
        await pair.begin()
        async with pair.loaded():
            await pair.flows()
            way.toggle_faults()
            for number in range(SCALE.outages):
                way.toggle()
                await trio.sleep(chance.uniform(0.2, 1.0))
                way.toggle()
                pair.count("outage")
                before = (await pair.egress.status())["received"]["records"]
                await pair.flows(before + 500)
                if number % 2:
                    pair.count("resend on a bad link")
                    await pair.resend()
        await pair.sent()
        way.toggle_faults()
        await pair.produce(40)
        await pair.sent()
        await pair.accepted()
        await pair.egress_until(lambda s: s["journal"]["open_entries"] > 0, "something is missing")
        assert await pair.resend()
        await pair.egress_until(lambda s: s["journal"]["positions_missing"] == 0, "everything was repaired")
        account = await pair.close("lost and resent")
    assert account.once == account.produced
    assert account.repaired > 0
