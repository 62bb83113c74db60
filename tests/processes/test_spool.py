"""The target is away while real processes go on, are killed and start again: what they owe it comes from the disk."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from gapconn.record import first_position
from tests.processes.ends import End, Ends, free_port
from tests.processes.test_life import Writer, lost_records

# Writes the number of each line that it is given to a file, a write for each delivery, unless it is told to wait.
PLUGIN = """
import os
import attrs, trio
from gapconn.config import option
from gapconn.plugins import Carries

@attrs.frozen(kw_only=True)
class Config:
    path: str = option(help="Where to write.")
    away: str = option(help="While this file exists, the target is away.")

class Sink:
    Config = Config
    accepts = frozenset({Carries.RECORDS})

    def __init__(self, config, context):
        self.config = config

    async def run(self, inlet):
        fd = os.open(self.config.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, b"start\\n")
        async for delivery in inlet:
            while os.path.exists(self.config.away):
                await trio.sleep(0.01)
            values = [value for part in delivery.batch.parts for value in part.values]
            os.write(fd, b"".join(b"%d\\n" % int(value) for value in values))
            delivery.accept()
            await trio.sleep(0)
"""

SMALL = {
    "rate": "8 Mbit/s",
    "batch_bytes": "8 KiB",
    "message_bytes_max": "64 KiB",
    "sink_buffer_bytes": "64 KiB",
    "reassembly_bytes_max": "64 MiB",
}
"""Little memory before messages go through the disk, and much for what waits to be written by a slow one."""


class Target:
    """What the plugin writes, and the switch with which it is away."""

    def __init__(self, ends: Ends) -> None:
        site = ends.directory / "site"
        metadata = site / "target_plugin-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "target_plugin.py").write_text(PLUGIN)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: target-plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[gapconn.sinks]\ntarget = target_plugin:Sink\n")
        ends.environ["PYTHONPATH"] = str(site)
        self.path = ends.directory / "target.txt"
        self._away = ends.directory / "away"
        self.section = f'type = "target"\npath = "{self.path}"\naway = "{self._away}"'

    def leave(self) -> None:
        self._away.touch()

    def come_back(self) -> None:
        self._away.unlink(missing_ok=True)

    @property
    def lives(self) -> list[list[int]]:
        """The numbers that each life of the egress wrote."""
        return [[int(line) for line in life.split()] for life in self.path.read_text().split("start\n")[1:]]


async def all_on_disk(egress: End) -> dict[str, Any]:
    """Wait until everything that the sink has not accepted is on disk."""
    return await egress.until_status(
        lambda s: s["spool"]["messages"] > 0 and s["spool"]["messages"] == s["held"]["unaccepted_messages"],
        "what the sink has not accepted is on disk",
    )


@pytest.mark.req("GC-DLV-19", "GC-DLV-20", "GC-DLV-23")
async def test_killed_at_random_while_it_spools_and_drains(ends: Ends) -> None:
    """Everything is written in order, or reported as lost, over many lives; and nothing that had come to the disk."""
    chance = random.Random(20)
    target, writer = Target(ends), Writer()
    ends.configure('type = "stdin"', target.section, 'after = "20ms"', **SMALL)
    ends.remember_a_session()
    egresses: list[End] = []
    async with trio.open_nursery() as nursery:
        target.leave()
        egresses.append(await ends.egress())
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        nursery.start_soon(writer.run, ingress)
        for leaves, comes_back in ((True, False), (False, True), (True, True), (False, False)):
            egress = egresses[-1]
            if leaves:
                target.leave()
            records = chance.choice([100, 1_000, 2_000])
            await egress.until_status(lambda s: s["received"]["records"] >= records, f"{records} records arrived")  # noqa: B023 - awaited right here
            if leaves:
                await egress.until_status(lambda s: s["spool"]["messages"] > 0, "some of it is on disk")
            if comes_back:
                target.come_back()
                written = len(target.lives[-1]) + chance.choice([1, 500, 1_000])
                await egress.until(lambda: len(target.lives[-1]) >= written, f"{written} lines are written")  # noqa: B023 - as above
            # What it missed while it was away is logged within a second; this is not about a kill before that.
            await egress.until_status(
                lambda s: s["missed"]["records"] == egress.total("records_lost"),  # noqa: B023 - as above
                "the losses are logged",
            )
            await egress.kill()
            egresses.append(await ends.egress())
        writer.enough = True
        assert await ingress.ended() == 0
        target.come_back()
        last = egresses[-1]
        await last.wait_logged("session_ended")
        await last.until_status(lambda s: s["held"]["unaccepted_messages"] == 0, "everything is written")
        await last.until_status(lambda s: s["spool"]["bytes"] == 0, "and the disk is empty")
        assert await last.stop() == 0
    assert egresses[1].logged("spool_resumed"), "the first was killed with something on disk, and the target away"
    assert not any(end.logged(event) for end in egresses for event in ("spool_damaged", "stopped_by_failure"))

    lives, lost = target.lives, lost_records(*egresses)
    everything = [number for life in lives for number in life]
    assert sorted(set(range(writer.lines)) - set(everything) - set(lost)) == []
    for numbers in lives:
        assert numbers == sorted(set(numbers)), "in order, and nothing twice in one life"
    for before, after in pairwise(life for life in lives if life):
        again = [number for number in after if number <= before[-1]]
        assert set(again) <= set(before), "only what was written directly before the kill can come again"
    assert {entry["cause"] for end in egresses for entry in end.logged("records_lost")} <= {"while_away", "gap"}


@pytest.mark.req("GC-DLV-19", "GC-DLV-20")
async def test_what_is_on_disk_is_never_lost(ends: Ends) -> None:
    """Every message that was spooled before the kill is written after it, once."""
    target, writer = Target(ends), Writer()
    ends.configure('type = "stdin"', target.section, 'after = "20ms"', **SMALL)
    ends.remember_a_session()
    target.leave()
    async with trio.open_nursery() as nursery:
        first = await ends.egress()
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        nursery.start_soon(writer.run, ingress)
        await first.until_status(lambda s: s["received"]["records"] >= 20_000, "20000 records arrived")
        writer.enough = True
        assert await ingress.ended() == 0
        await first.wait_logged("session_ended")
        status = await all_on_disk(first)
        assert status["missed"]["records"] == status["missed"]["refused_records"] == 0
        await first.kill()
    second = await ends.egress()
    assert (await second.wait_logged("spool_resumed"))["messages"] == status["spool"]["messages"]
    await second.kill()
    third = await ends.egress()
    target.come_back()
    await third.until_status(lambda s: s["spool"]["bytes"] == 0, "the disk is empty")
    assert await third.stop() == 0
    assert target.lives == [[], [], list(range(writer.lines))]


@pytest.mark.req("GC-DLV-22")
async def test_a_full_spool_over_a_restart(ends: Ends) -> None:
    """What is in it stays, the newest is refused with its place, and when the target is back it goes on."""
    target, writer = Target(ends), Writer()
    ends.configure(
        'type = "stdin"',
        target.section,
        'max_bytes = "1 MiB"',
        shutdown_grace="2s",
        # With repair symbols, what was refused may be whole once more behind it, and be delivered late.
        fec={"repair": "0%"},
        **{**SMALL, "reassembly_bytes_max": "1 MiB"},
    )
    ends.remember_a_session()
    target.leave()
    async with trio.open_nursery() as nursery:
        first = await ends.egress()
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        nursery.start_soon(writer.run, ingress)
        full = await first.wait_logged("spool_full")
        assert "spool.max_bytes" in full["why"]
        await first.wait_logged("records_refused")
        health = (await first.get("/health")).json()["problems"]
        assert any("the spool is filled to" in problem for problem in health)
        assert any("the spool takes nothing" in problem for problem in health)
        status = await first.status()
        assert status["spool"]["bytes"] <= 1 << 20
        assert "spool.max_bytes" in status["spool"]["trouble"]
        assert await first.stop() == 1, "what is only in memory has no place any more"
        (failure,) = first.logged("stopped_by_failure")
        assert "are kept in the spool" in failure["reason"]
        assert first.logged("spool_incomplete")[0]["messages"] > 0
        second = await ends.egress()
        resumed = await second.wait_logged("spool_resumed")
        await second.wait_logged("records_refused")
        before = await second.status()
        target.come_back()
        await second.until_status(
            lambda s: s["accepted_messages"] > before["accepted_messages"] + resumed["messages"], "it drains"
        )
        writer.enough = True
        assert await ingress.ended() == 0
        await second.wait_logged("session_ended")
        await second.until_status(lambda s: s["spool"]["bytes"] == 0 and not s["alarms"], "it is empty")
        assert await second.stop() == 0
    line_0 = first_position(ingress.logged("ingress_started")[0]["epoch"])
    refused = [
        position - line_0
        for end in (first, second)
        for entry in end.logged("records_refused")
        for begin, last in entry["ranges"]
        for position in range(begin, last + 1)
    ]
    arrived = [number for life in target.lives for number in life]
    assert arrived == sorted(set(arrived)), "in order, and nothing twice"
    missing = sorted(set(range(writer.lines)) - set(arrived) - set(refused) - set(lost_records(first, second)))
    assert missing == []
    assert set(arrived).isdisjoint(refused)
    assert len(refused) > 100


async def test_stopped_in_order_it_keeps_what_the_target_did_not_take(ends: Ends) -> None:
    target, writer = Target(ends), Writer()
    ends.configure('type = "stdin"', target.section, shutdown_grace="1s", **SMALL)
    ends.remember_a_session()
    async with trio.open_nursery() as nursery:
        first = await ends.egress()
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        nursery.start_soon(writer.run, ingress)
        await first.until(lambda: len(target.lives[-1]) > 1_000, "something is written")
        target.leave()
        await first.until_status(lambda s: s["held"]["unaccepted_messages"] > 100, "something waits")
        writer.enough = True
        assert await ingress.ended() == 0
        await first.wait_logged("session_ended")
        assert await first.stop(signal.SIGTERM) == 0
    (kept,) = first.logged("spool_kept")
    second = await ends.egress()
    assert second.logged("spool_resumed")[0]["messages"] == kept["messages"] > 0
    target.come_back()
    await second.until_status(lambda s: s["held"]["unaccepted_messages"] == 0, "the rest is written")
    assert await second.stop() == 0
    assert [number for life in target.lives for number in life] == list(range(writer.lines))
    assert lost_records(first, second) == []


async def test_a_tcp_target_that_is_away(ends: Ends) -> None:
    """Far more than all buffers comes while nobody listens; when somebody does, it is all there."""
    target = trio.socket.socket()
    await target.bind((ends.host, 0))  # and does not listen yet, but nobody else gets this port
    listen = free_port(ends.host, socket.SOCK_STREAM)
    source = f'type = "tcp"\nlisten = "{ends.host}:{listen}"\nmax_connections = 10'
    sink = f'type = "tcp"\nconnect = "{ends.host}:{target.getsockname()[1]}"\nbuffer_bytes = "64 KiB"'
    ends.configure(source, sink, **{**SMALL, "rate": "20 Mbit/s"})
    ends.remember_a_session()
    egress = await ends.egress()
    ingress = await ends.ingress()
    data = random.Random(1).randbytes(4 << 20)
    await ingress.wait_logged("listening")
    client = await trio.open_tcp_stream(ends.host, listen)
    async with client:
        await client.send_all(data)
    status = await egress.until_status(lambda s: s["received"]["bytes"] > 4 << 20, "all of it has arrived")
    assert status["spool"]["bytes"] > 1 << 20
    target.listen()
    connection, _ = await target.accept()
    received = bytearray()
    async with trio.SocketStream(connection) as stream:
        async for part in stream:
            received += part
    target.close()
    assert bytes(received) == data
    assert await ingress.stop() == 0
    assert await egress.stop() == 0
    assert not egress.logged("sink_lost")
    assert not egress.logged("messages_refused")


async def test_two_egresses_on_one_spool(ends: Ends) -> None:
    """Two state directories do not help: the spool is one."""
    target = Target(ends)
    ends.configure("", target.section, f'directory = "{ends.directory / "spools"}"')
    await ends.egress()
    elsewhere = {
        "GAPCONN_LINK_STATE_DIRECTORY": str(ends.directory / "elsewhere"),
        "GAPCONN_LINK_BIND": str(ends.free_address()),
    }
    second = ends.start("egress", environ=elsewhere)
    assert await second.ended() == 1
    (failure,) = second.logged("stopped_by_failure")
    assert "another egress of link 'orders'" in failure["reason"]
    assert str(Path("spools") / "orders.spool") in failure["reason"]
