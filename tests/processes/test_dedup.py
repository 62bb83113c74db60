"""`gapconn dedup` as a process, with a real broker: exactly once, in order, over kills, fences and broker restarts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable

import pytest
import trio

from gapconn.testing.kafka_broker import KafkaNode
from tests.dedup.traffic import PARTITIONS, copies, dedup_file, lossy, read_until, topics, values
from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import End, Ends


def configure(ends: Ends, address: str, inputs: Iterable[str], output: str, *, dedup: str = "") -> None:
    text = dedup_file(address, inputs, output, dedup=dedup)
    ends.file.write_text(f'{text}\n[admin]\nlisten = "{ends.host}:0"\n[log]\nformat = "json"\n')


async def started(ends: Ends) -> End:
    end = ends.start("dedup")
    await end.wait_logged("dedup_started")
    return end


@pytest.mark.kafka
async def test_two_lossy_links_make_one_complete_topic_in_order(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output, dedup='hold = "60s"')
    count = 2_000
    for partition in range(PARTITIONS):
        for topic, offsets in zip(inputs, lossy(count, partition), strict=True):
            kafka.send(topic, copies(offsets, partition=partition))
    end = await started(ends)
    expected = PARTITIONS * count
    # What comes last waits for the link that lost it.
    status = await end.until_status(
        lambda s: s["output"]["records"] + s["state"].get("held", 0) == expected, "all came"
    )
    assert status["output"]["records"] > expected - 100
    for partition in range(PARTITIONS):
        for topic in inputs:
            kafka.send(topic, copies([count], partition=partition))
    entries = await read_until(kafka, output, lambda entries: len(entries) >= expected + PARTITIONS)
    assert values(entries) == {partition: list(range(count + 1)) for partition in range(PARTITIONS)}
    first = entries[0]
    assert first.key == b"k0"
    assert first.timestamp_ms == 1_700_000_000_000
    assert first.headers == [("own", b"1"), ("gapconn-origin", b"c/orders/0/0")]
    assert not [entry for entry in entries if ("gapconn-late", b"1") in (entry.headers or [])]
    status = await end.status()
    links = status["links"]
    assert sum(links[link]["first"] for link in "ab") == expected + PARTITIONS
    for link in "ab":
        assert 0.75 * expected < links[link]["records"] < 0.85 * expected
        assert links[link]["records"] == links[link]["first"] + links[link]["repeats"]
    assert (await end.get("/health")).status_code == 200
    assert (await end.get("/ready")).status_code == 200
    metrics = (await end.get("/metrics")).text
    assert f'gapconn_dedup_records_total{{link="{output}",role="dedup"}} {expected + PARTITIONS:.1f}' in metrics
    assert await end.stop() == 0
    assert end.log[-1]["event"] == "dedup_stopped"


PIECE = 20
"""Offsets of a partition that are sent at once."""


def feed(kafka: Cluster, inputs: list[str], enough: threading.Event) -> int:
    """Both links at once, piece by piece, the second one a piece behind, until it is enough; how many pieces."""
    pieces = 0
    while not enough.is_set() or pieces < 10:
        send_piece(kafka, inputs[0], 0, pieces)
        if pieces:
            send_piece(kafka, inputs[1], 1, pieces - 1)
        pieces += 1
        time.sleep(0.1)  # for as long as it takes to kill, this goes on
    send_piece(kafka, inputs[1], 1, pieces - 1)
    return pieces


def send_piece(kafka: Cluster, topic: str, link: int, piece: int) -> None:
    for partition in range(PARTITIONS):
        lossless = copies(range(piece * PIECE, (piece + 1) * PIECE), partition=partition)
        entries = [lossless[row] for row in lossy(PIECE, seed=piece)[link]]
        # A record without id in each piece: it must not come twice either.
        entries.append(Entry(value=b"%d" % (UNIDENTIFIED + 2 * piece + link), partition=partition))
        kafka.send(topic, entries)


UNIDENTIFIED = 10_000_000


@pytest.mark.kafka
async def test_killed_again_and_again_under_load_it_still_writes_each_record_once(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output, dedup='hold = "500ms"')
    enough, pieces = threading.Event(), 0

    async def keep_feeding() -> None:
        nonlocal pieces
        pieces = await trio.to_thread.run_sync(feed, kafka, inputs, enough)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_feeding)
        try:
            chance = random.Random(7)
            for _ in range(5):
                end = await started(ends)
                transactions = chance.randint(1, 3)
                await end.until_status(lambda s, n=transactions: s["output"]["transactions"] >= n, "it writes")  # type: ignore[misc]
                await end.kill()
        finally:
            enough.set()
    last = await started(ends)
    expected = PARTITIONS * pieces * (PIECE + 2)
    await read_until(kafka, output, lambda entries: len(entries) >= expected)
    assert await last.stop() == 0
    entries = await trio.to_thread.run_sync(kafka.read, output)
    for partition, numbers in values(entries).items():
        assert sorted(number for number in numbers if number < UNIDENTIFIED) == list(range(pieces * PIECE)), partition
        others = sorted(number for number in numbers if number >= UNIDENTIFIED)
        assert others == list(range(UNIDENTIFIED, UNIDENTIFIED + 2 * pieces))
        in_order = [
            int(entry.value or b"")
            for entry in entries
            if entry.partition == partition
            and int(entry.value or b"") < UNIDENTIFIED
            and ("gapconn-late", b"1") not in (entry.headers or [])
        ]
        assert in_order == sorted(in_order), "what is out of order is marked"
    # The state is small: what compaction leaves of it is some records for each source partition.
    state = kafka.read(f"gapconn-dedup-{output}-state")
    assert len({entry.key for entry in state}) <= 1 + PARTITIONS * 65


@pytest.mark.kafka
@pytest.mark.timeout(600)  # starts a broker twice
async def test_a_broker_that_is_restarted_costs_nothing(ends: Ends, kafka_node: KafkaNode) -> None:
    kafka = Cluster(kafka_node.address)
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output)
    end = await started(ends)
    kafka.send(inputs[0], copies(range(0, 1000, 2), partition=0))
    await read_until(kafka, output, lambda entries: len(entries) == 500)
    await trio.to_thread.run_sync(kafka_node.kill)
    await end.wait_logged("broker_unreachable")
    await trio.to_thread.run_sync(kafka_node.start)
    kafka.send(inputs[1], copies(range(1000), partition=0))
    entries = await read_until(kafka, output, lambda entries: len(entries) >= 1000)
    assert sorted(values(entries)[0]) == list(range(1000))
    assert await end.stop() == 0
