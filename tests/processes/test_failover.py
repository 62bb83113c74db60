"""Pairs that share a consumer group: one end dies under load, and nothing is missing at the target."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gapconn.admin.client import AdminClient
from tests.kafka.cluster import Cluster
from tests.processes.ends import LIMIT_S, End
from tests.processes.pairs import PARTITIONS, TOKEN, Site, site

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def partitions_of(status: dict[str, Any]) -> list[str]:
    partitions: list[str] = status["source"].get("partitions", [])
    return partitions


async def has_partitions(ingress: End, count: int) -> None:
    await ingress.until_status(lambda s: len(partitions_of(s)) == count, f"{ingress.name} has {count} partitions")


async def sends(ingress: End) -> None:
    """Wait until it has sent something more."""
    before = (await ingress.status())["sent"]["records"]
    await ingress.until_status(lambda s: s["sent"]["records"] > before, f"{ingress.name} sends")


async def state_is(monitor: End, pair: str, state: str) -> dict[str, Any]:
    """Wait until the monitor says so of the pair; what it said."""

    def of(status: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in status["pairs"] if each["pair"] == pair)
        return found

    await monitor.wait_logged("monitor_started")
    return of(await monitor.until_status(lambda s: of(s)["state"] == state, f"{pair} is {state}"))


@asynccontextmanager
async def under_load(site: Site) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.send_on)
        yield
        nursery.cancel_scope.cancel()


async def both_pairs(site: Site) -> tuple[End, End, End, End]:
    """Start two pairs and have each get its share; egress and ingress of the first, then of the second."""
    first, second = site.pairs
    egress_a, egress_b = await first.egress(), await second.egress()
    ingress_a, ingress_b = first.start("ingress"), second.start("ingress")
    await has_partitions(ingress_a, PARTITIONS // 2)
    await has_partitions(ingress_b, PARTITIONS // 2)
    return egress_a, ingress_a, egress_b, ingress_b


@pytest.mark.req("GC-DLV-24", "GC-SESS-17")
async def test_an_egress_is_killed_and_comes_back(kafka: Cluster, tmp_path: Path) -> None:
    """The monitor pauses its ingress, which goes back; the other pair takes over; later the load is shared again."""
    with site(kafka, tmp_path) as place:
        place.configure_monitor()
        egress_a, ingress_a, egress_b, ingress_b = await both_pairs(place)
        monitor = await place.monitor()
        async with under_load(place):
            await sends(ingress_a)
            await sends(ingress_b)
            await state_is(monitor, "a", "working")
            # Not before it knows what was delivered: this is what a monitor does all the time.
            await egress_a.until_status(lambda s: s["accepted_messages"] > 5, "something is delivered")
            await egress_a.kill()
            await ingress_a.wait_logged("source_paused")
            assert ingress_a.logged("offsets_rewound"), "something was sent in vain, and is read again"
            await has_partitions(ingress_b, PARTITIONS)
            await sends(ingress_b)
            assert (await ingress_a.status())["state"] == "active", "the session goes on"

            again = await place.pairs[0].egress()
            await again.until_status(lambda s: s["ingress"] == "paused", "the egress hears that it is paused")
            await ingress_a.wait_logged("source_started", 2)
            await has_partitions(ingress_a, PARTITIONS // 2)
            await sends(ingress_a)
            await sends(ingress_b)
        await place.everything_arrived(monitor)
        status = await state_is(monitor, "a", "working")
        assert (status["times_out"], status["held"]) == (1, False)
        # The pair that took over does not call lost what the other had sent before (GC-DLV-16).
        assert not egress_b.logged("records_missing")
        assert (await egress_b.status())["journal"]["positions_missing"] == 0
        assert (await ingress_b.status())["paused"] == {"at_rest": False, "holds": []}


@pytest.mark.req("GC-DLV-24")
async def test_an_egress_hangs_and_the_monitor_is_restarted(kafka: Cluster, tmp_path: Path) -> None:
    """SIGSTOP is no answer; the next monitor finds its hold, and takes it away when the egress goes on."""
    with site(kafka, tmp_path) as place:
        place.configure_monitor(deadline="2s", failures=2)
        egress_a, ingress_a, _, ingress_b = await both_pairs(place)
        monitor = await place.monitor()
        async with under_load(place):
            await sends(ingress_a)
            await state_is(monitor, "a", "working")
            os.kill(egress_a.process.pid, signal.SIGSTOP)
            await ingress_a.wait_logged("source_paused")
            assert await monitor.stop() == 0
            await has_partitions(ingress_b, PARTITIONS)
            assert (await ingress_a.status())["paused"]["at_rest"], "a monitor that ends changes nothing"

            monitor = await place.monitor()
            await state_is(monitor, "a", "out")
            os.kill(egress_a.process.pid, signal.SIGCONT)
            await ingress_a.wait_logged("source_started", 2)
            await has_partitions(ingress_a, PARTITIONS // 2)
        await place.everything_arrived(monitor)
        assert not [each for each in monitor.logged("ingress_paused") if each["pair"] == "b"]


@pytest.mark.req("GC-DLV-39")
async def test_partitions_moved_between_the_death_of_an_egress_and_the_pause(kafka: Cluster, tmp_path: Path) -> None:
    """The test is the monitor, a slow one: what was sent in vain in them comes when the egress is back."""
    with site(kafka, tmp_path) as place:
        first, second = place.pairs
        egress_a, ingress_a = await first.egress(), await first.ingress()
        async with (
            AdminClient(f"http://{first.egress_admin}", timeout_s=LIMIT_S) as egress,
            AdminClient(f"http://{first.ingress_admin}", token=TOKEN, timeout_s=LIMIT_S) as ingress,
        ):
            await place.send(20)
            positions: dict[str, int] = {}
            with trio.fail_after(LIMIT_S):
                while list(positions.values()) != PARTITIONS * [20]:
                    positions = await egress.positions()
            await egress_a.kill()
            await place.send(10)
            await ingress_a.until_status(lambda s: s["sent"]["records"] == PARTITIONS * 30, "more is sent in vain")

            await second.egress()
            ingress_b = second.start("ingress")
            await has_partitions(ingress_b, PARTITIONS // 2)
            moved = {int(each.rpartition("/")[2]) for each in partitions_of(await ingress_b.status())}
            hold = {"owner": "monitor:test", "reason": "its egress is dead"}
            answer = await ingress.post("/pause", {**hold, "positions": positions, "wait_s": 30})
            assert answer["at_rest"]
            missed = {
                each["partition"]: (each["first_offset"], each["last_offset"]) for each in answer["rewind_missed"]
            }
            assert missed == dict.fromkeys(moved, (20, 29))
            await ingress_a.wait_logged("resend_asked")
            await has_partitions(ingress_b, PARTITIONS)
            assert not ingress_a.logged("resend_started"), "nobody would hear it"

            await first.egress()
            await ingress.post("/resume", {"owner": hold["owner"]})
            await place.everything_arrived(ingress_a)


@pytest.mark.req("GC-DLV-16")
async def test_an_ingress_is_killed(kafka: Cluster, tmp_path: Path) -> None:
    """Kafka gives its partitions to the other pair, whose egress does not call the offsets before them lost."""
    with site(kafka, tmp_path) as place:
        egress_a, ingress_a, egress_b, ingress_b = await both_pairs(place)
        async with under_load(place):
            await sends(ingress_a)
            await sends(ingress_b)
            await ingress_a.kill()
            await has_partitions(ingress_b, PARTITIONS)
            await sends(ingress_b)
        found = await place.everything_arrived(egress_b)
        assert set(found.values()) <= {1, 2}, "sent again: what was not committed when it was killed"
        for egress in (egress_a, egress_b):
            assert not egress.logged("records_missing")
            assert (await egress.status())["missed"]["records"] == 0


async def test_what_an_operator_paused_no_monitor_resumes(kafka: Cluster, tmp_path: Path) -> None:
    """Not while its egress is well, not after its egress was away; and it stays paused over a restart."""
    with site(kafka, tmp_path, ("a",)) as place:
        place.configure_monitor()
        [pair] = place.pairs
        egress, ingress = await pair.egress(), await pair.ingress()
        monitor = await place.monitor()
        await state_is(monitor, "a", "working")
        told = await gapconn(place, "pause", "--reason", "new disk")
        assert told.splitlines()[0] == "paused"
        await place.send(10)
        assert await ingress.stop() == 0
        ingress = pair.start("ingress")
        await ingress.wait_logged("source_paused")
        assert not ingress.logged("source_started")

        await egress.kill()
        await state_is(monitor, "a", "out")
        await ingress.until_status(lambda s: len(s["paused"]["holds"]) == 2, "the monitor holds it too")
        assert "still paused" in await gapconn(place, "resume"), "the hold of the monitor stands"
        assert "paused" in await gapconn(place, "pause")
        egress = await pair.egress()
        await monitor.wait_logged("ingress_resumed")
        [hold] = (await ingress.status())["paused"]["holds"]
        assert hold["owner"] == "operator"
        assert (await gapconn(place, "resume")).strip() == "resumed"
        await place.everything_arrived(monitor)


async def gapconn(place: Site, command: str, *options: str) -> str:
    """Run a command on the file of the only pair; what it printed."""
    [pair] = place.pairs
    end = pair.ends.start(
        command, *options,
        environ={"GAPCONN_ADMIN_LISTEN": str(pair.ingress_admin)}, stdout=place.directory / "said",
    )  # fmt: skip
    (place.directory / "said").write_text("")
    assert await end.ended() == 0, end.log_file.read_text()
    return (place.directory / "said").read_text()
