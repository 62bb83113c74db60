"""From a loss to a complete target: real processes, real Kafka, a gap that swallows, and lists carried across."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from gapconn.testing.faults import FaultPlan, GapCounts, GapSwitch
from gapconn.testing.gap import relay
from gapconn.units import Address
from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import LIMIT_S, End, Ends


@asynccontextmanager
async def gap(ends: Ends) -> AsyncIterator[tuple[Address, GapSwitch]]:
    """A gap in front of an egress that listens at the address yielded."""
    listen, switch = ends.free_address(), GapSwitch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: relay(ends.address, listen, FaultPlan(), GapCounts(), switch=switch))
        yield listen, switch
        nursery.cancel_scope.cancel()


async def command(ends: Ends, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run gapconn to its end."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GAPCONN_")}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gapconn", *arguments],
            capture_output=True, text=True, env=inherited, cwd=ends.directory, timeout=3 * LIMIT_S, check=False,
        )  # fmt: skip

    return await trio.to_thread.run_sync(run)


async def missing(egress: End, positions: int) -> dict[str, Any]:
    """Wait until the journal has so many positions open."""
    return await egress.until_status(
        lambda status: status["journal"]["positions_missing"] == positions, f"{positions} positions are missing"
    )


@attrs.define
class Topics:
    """A source topic of two partitions and its target."""

    kafka: Cluster
    source: str
    target: str
    sent: int = 0

    @classmethod
    async def make(cls, kafka: Cluster) -> Topics:
        def create() -> tuple[str, str]:
            source = kafka.create_topic(partitions=2)
            return source, kafka.create_topic(name=f"copy-{source}", partitions=2)

        return cls(kafka, *await trio.to_thread.run_sync(create))

    async def send(self, count: int) -> None:
        """Append so many records to each partition."""
        entries = [
            Entry(value=b"%d/%d" % (partition, n), key=b"k", partition=partition)
            for n in range(self.sent, self.sent + count)
            for partition in (0, 1)
        ]
        await trio.to_thread.run_sync(self.kafka.send, self.source, entries)
        self.sent += count

    async def found(self) -> list[tuple[int, bytes, bool]]:
        """Partition, value, and whether it came as a repair, in the order of the target."""
        entries = await trio.to_thread.run_sync(self.kafka.read, self.target)
        return [(e.partition, e.value or b"", ("gapconn-repair", b"1") in (e.headers or [])) for e in entries]


async def lose(ends: Ends, topics: Topics, switch: GapSwitch, ingress: End, count: int) -> None:
    """So many records of each partition are sent and lost, and ten behind them arrive."""
    switch.on = False
    before = (await ingress.status())["sent"]["records"]
    await topics.send(count)
    await ingress.until_status(lambda s: s["sent"]["records"] == before + 2 * count, "the ingress has sent them")
    switch.on = True
    await topics.send(10)


async def all_accepted(egress: End, records: int) -> None:
    await egress.until_status(
        lambda s: s["received"]["records"] >= records and not s["held"]["unaccepted_messages"], "all was accepted"
    )


def configure(ends: Ends, topics: Topics, listen: Address) -> None:
    address = topics.kafka.address
    ends.configure(
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopics = ["{topics.source}"]\n'
        f'group_id = "{topics.source}"\ncommit_interval = "100ms"',
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "copy-{{topic}}"',
        spool='after = "10ms"',  # some of it goes through the disk
        compression="zstd",
        bind=str(listen),
        interruption_timeout="30s",  # taking the link away is no interruption here
    )
    ends.remember_a_session()


@pytest.mark.kafka
@pytest.mark.timeout(900)  # it starts many processes, one after the other
@pytest.mark.req("GC-RPR-1", "GC-RPR-5", "GC-RPR-6", "GC-RPR-7")
async def test_a_loss_is_journaled_carried_across_resent_and_closed(ends: Ends, kafka: Cluster) -> None:
    topics = await Topics.make(kafka)
    async with gap(ends) as (listen, switch):
        configure(ends, topics, listen)
        egress = await ends.egress()
        ingress = await ends.ingress()
        await topics.send(20)
        await all_accepted(egress, 40)
        await lose(ends, topics, switch, ingress, 30)
        await missing(egress, 60)
        await all_accepted(egress, 60)

        # The journal is read while the egress runs, and survives its end without warning.
        listed = await command(ends, "gaps", "list", str(ends.file), "--json")
        [entry] = json.loads(listed.stdout)
        assert (entry["state"], entry["cause"], entry["records"]) == ("open", "gap", 60)
        assert {each["partition"]: each["ranges"] for each in entry["missing"]} == {0: [[20, 49]], 1: [[20, 49]]}
        await egress.kill()
        typed = await command(ends, "gaps", "export", str(ends.file), "--format", "text")
        assert (typed.returncode, typed.stderr) == (0, "")

        # Typed again, with one mistake.
        lines = typed.stdout.splitlines()
        place = lines[2].index(":") + 4
        lines[2] = lines[2][:place] + ("7" if lines[2][place] != "7" else "8") + lines[2][place + 1 :]
        typed_file = ends.directory / "typed.txt"
        typed_file.write_text("\n".join(lines).lower())
        refused = await command(ends, "resend", str(ends.file), "--gaps", str(typed_file))
        assert refused.returncode == 2
        assert refused.stderr == "error: line 2: its check does not fit; compare it character by character\n"
        typed_file.write_text(typed.stdout.lower())

        egress = await ends.egress()
        await missing(egress, 60)
        done = await command(ends, "resend", str(ends.file), "--gaps", str(typed_file))
        assert (done.returncode, done.stdout) == (0, "done, 60 of 60 positions settled, 60 records sent\n")
        await missing(egress, 0)
        status = await ingress.status()
        assert (status["resent"]["records"], status["sent"]["records"]) == (60, 120)
        await topics.send(5)
        await all_accepted(egress, 10)
        # Once more: nothing of it is missing, so nothing of it is delivered.
        assert (await command(ends, "resend", str(ends.file), "--gaps", str(typed_file))).returncode == 0
        assert await ingress.stop() == 0
        await egress.wait_logged("session_ended")
        assert await egress.stop() == 0
    found = await topics.found()
    assert sorted((p, value) for p, value, _ in found) == sorted(
        (p, b"%d/%d" % (p, n)) for p in (0, 1) for n in range(65)
    )
    assert {value for _, value, repair in found if repair} == {b"%d/%d" % (p, n) for p in (0, 1) for n in range(20, 50)}
    closed = await command(ends, "gaps", "list", str(ends.file), "--all", "--json")
    assert [(each["state"], each["missing"]) for each in json.loads(closed.stdout)] == [("repaired", [])]


@pytest.mark.kafka
@pytest.mark.timeout(900)  # it starts many processes, one after the other
@pytest.mark.req("GC-RPR-5", "GC-RPR-7")
async def test_without_an_ingress_resend_is_one_and_says_what_is_gone(ends: Ends, kafka: Cluster) -> None:
    topics = await Topics.make(kafka)
    async with gap(ends) as (listen, switch):
        configure(ends, topics, listen)
        egress = await ends.egress()
        ingress = await ends.ingress()
        await topics.send(20)
        await all_accepted(egress, 40)
        await lose(ends, topics, switch, ingress, 30)
        await missing(egress, 60)
        assert await ingress.stop() == 0
        await egress.wait_logged("session_ended")
        await trio.to_thread.run_sync(kafka.delete_before, topics.source, 25)
        bundle = ends.directory / "gaps.json"
        assert (await command(ends, "gaps", "export", str(ends.file), "-o", str(bundle))).returncode == 0
        done = await command(ends, "resend", str(ends.file), "--gaps", str(bundle))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "done, 60 of 60 positions settled, 55 records sent, 5 positions gone",
            f"gone: {topics.source}/0 20-24: deleted by retention",
        ]
        await missing(egress, 0)
        await egress.until(lambda: bool(egress.logged("gap_closed")), "the entry is closed")
        assert egress.logged("records_gone")[0]["ranges"] == [[20, 24]]
        [entry] = json.loads((await command(ends, "gaps", "list", str(ends.file), "--all", "--json")).stdout)
        assert (entry["state"], entry["reason"]) == ("unrecoverable", "deleted by retention")
        # And the ingress goes on where it stopped: nothing is called lost because of the session between.
        ingress = await ends.ingress()
        await topics.send(5)
        await egress.until_status(lambda s: s["received"]["records"] == 70, "the new records arrived")
        assert not (await egress.status())["journal"]["open_entries"]
        assert await ingress.stop() == 0
        assert await egress.stop() == 0
    found = [(p, value) for p, value, _ in await topics.found()]
    gone = {(0, b"0/%d" % n) for n in range(20, 25)}
    assert sorted(found) == sorted({(p, b"%d/%d" % (p, n)) for p in (0, 1) for n in range(65)} - gone)


@pytest.mark.kafka
@pytest.mark.timeout(900)  # it starts many processes, one after the other
@pytest.mark.req("GC-RPR-1", "GC-RPR-7")
async def test_an_egress_killed_between_loss_and_close_misses_no_less(ends: Ends, kafka: Cluster) -> None:
    """Killed as soon as it has told the loss, and again while repairs arrive: in the end the target is complete."""
    topics = await Topics.make(kafka)
    async with gap(ends) as (listen, switch):
        configure(ends, topics, listen)
        egress = await ends.egress()
        ingress = await ends.ingress()
        await topics.send(20)
        await all_accepted(egress, 40)
        await lose(ends, topics, switch, ingress, 30)
        await egress.until(lambda: bool(egress.logged("records_missing")), "the loss is told")
        await egress.kill()
        egress = await ends.egress()
        await topics.send(5)
        await egress.until_status(
            lambda s: s["journal"]["positions_missing"] >= 60 and s["received"]["records"] > 0, "it is missing again"
        )
        bundle = ends.directory / "gaps.json"
        for last in (False, True):
            assert (await command(ends, "gaps", "export", str(ends.file), "-o", str(bundle))).returncode == 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(command, ends, "resend", str(ends.file), "--gaps", str(bundle))
                if not last:
                    requested = ends.directory / "state" / "orders.resend.sqlite"
                    await egress.until(requested.exists, "a resend is asked for")
                    egress.process.send_signal(signal.SIGKILL)
            if not last:
                await egress.ended()
                egress = await ends.egress()
                await topics.send(5)
                await egress.until_status(lambda s: s["received"]["records"] > 0, "records arrive again")
        await missing(egress, 0)
        assert await ingress.stop() == 0
        await egress.wait_logged("session_ended")
        assert await egress.stop() == 0
    found = {(p, value) for p, value, _ in await topics.found()}
    assert found == {(p, b"%d/%d" % (p, n)) for p in (0, 1) for n in range(topics.sent)}


async def test_a_source_that_cannot_be_read_again_says_so(ends: Ends) -> None:
    ends.configure('type = "stdin"', 'type = "stdout"')
    refused = await command(
        ends, "resend", str(ends.file), "--topic", "t", "--from", "2026-01-01", "--to", "2026-01-02"
    )
    assert refused.returncode == 2
    assert "the source 'stdin' cannot be read a second time, and there is no [repeat_buffer]" in refused.stderr
    assert "these can: kafka" in refused.stderr
