"""Sources that number their records themselves: what is missing from two sessions is told apart."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.config import Link
from gapconn.plugins import Context
from gapconn.protocol.envelope import Copy
from gapconn.record import Batch, Records, first_position
from gapconn.sources.generate import GenerateConfig, GenerateSource
from gapconn.sources.stdin import StdinConfig, StdinSource
from gapconn.sources.udp import UdpSource, UdpSourceConfig
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Address, Bytes
from tests.processes.ends import free_port
from tests.services import Session, Taking, feed, link, running, until
from tests.test_egress_repair import missing

OLD, NEW = 1_000_000, 2_000_000
"""Epochs of two sessions, a second apart."""

Batches = Callable[[Context, Address], Awaitable[list[Batch]]]
"""What a source sends in a session: three batches or more. The address is for one that listens."""


async def generated(context: Context, _: Address) -> list[Batch]:
    outlet = RecordingOutlet(batch_bytes=2100)
    await GenerateSource(GenerateConfig(size_bytes=Bytes(1000), count=6), context).run(outlet)
    return outlet.batches


async def lines(context: Context, _: Address) -> list[Batch]:
    outlet = RecordingOutlet(batch_bytes=2100)
    reader, writer = os.pipe()
    os.write(writer, b"".join(b"%0999d\n" % number for number in range(6)))
    os.close(writer)
    await StdinSource(StdinConfig(), context, fd=reader).run(outlet)
    os.close(reader)
    return outlet.batches


async def datagrams(context: Context, listen: Address) -> list[Batch]:
    outlet = RecordingOutlet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(UdpSource(UdpSourceConfig(listen=listen), context).run, outlet)
        await wait_all_tasks_blocked()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.connect((listen.host, listen.port))
            for number in range(3):
                peer.send(b"%d" % number)
                await outlet.wait_until(lambda batches: len(batches) > number)  # noqa: B023 - awaited right here
        nursery.cancel_scope.cancel()
    return outlet.batches


sources = pytest.mark.parametrize("batches_of", [generated, lines, datagrams])


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)


@pytest.fixture
def listen() -> Address:
    return Address("127.0.0.1", free_port("127.0.0.1"))


def run_of(batch: Batch) -> Records:
    (part,) = batch.parts
    assert isinstance(part, Records)
    return part


@pytest.mark.req("GC-DLV-42")
@sources
async def test_what_comes_again_of_a_session_leaves_open_what_is_missing_of_another(
    way: Link, listen: Address, batches_of: Batches
) -> None:
    sink, old, new = Taking(), Session(way, epoch=OLD), Session(way, epoch=NEW, previous_epoch=OLD)
    before = await batches_of(make_context(epoch=OLD), listen)
    after = await batches_of(make_context(epoch=NEW), listen)
    lost_before, lost_after = run_of(before[1]), run_of(after[1])
    place = (lost_before.stream, 0)
    async with running(way, sink) as egress:
        sent_before, sent_after = [old.batch(each) for each in before[:3]], [new.batch(each) for each in after[:3]]
        await feed(egress, old.start + sent_before[0] + sent_before[2])
        await until(lambda: len(sink.deliveries) == 2)
        await feed(egress, new.start + sent_after[0] + sent_after[2])
        await until(lambda: len(sink.deliveries) == 4)
        open_before = (lost_before.positions[0], lost_before.positions[-1])
        open_after = (lost_after.positions[0], lost_after.positions[-1])
        assert missing(egress.journal) == {place: [open_before, open_after]}

        await feed(egress, new.repeat(sent_after[1]))
        await until(lambda: missing(egress.journal) == {place: [open_before]})
        await feed(egress, new.copy([Copy(OLD, 1, 1)], old.kept[1]))
        await until(lambda: not egress.journal.open_entries)
    assert [run_of(delivery.batch).values for delivery in sink.deliveries] == [
        run_of(each).values for each in (before[0], before[2], after[0], after[2], after[1], before[1])
    ]


@pytest.mark.req("GC-DLV-42")
@sources
async def test_a_session_is_a_chain_of_its_own_from_twice_its_epoch_on(listen: Address, batches_of: Batches) -> None:
    context = make_context(epoch=OLD)
    runs = [run_of(each) for each in await batches_of(context, listen)]
    positions = [position for run in runs for position in run.positions]
    assert positions == list(range(2 * OLD, 2 * OLD + len(positions)))
    assert [run.previous for run in runs] == [-1, *(run.positions[-1] for run in runs[:-1])]


@sources
async def test_the_id_of_a_record_has_link_and_session(listen: Address, batches_of: Batches) -> None:
    batches = await batches_of(make_context(link="meters", epoch=0x2A), listen)
    assert {each.origin for each in batches} == {"meters-2a"}


def test_positions_are_exact_in_json_for_longer_than_anybody_runs_this() -> None:
    epoch = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert first_position(epoch) < 2**53
