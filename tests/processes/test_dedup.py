"""`gapconn dedup` as a process, with a real broker: exactly once, in order, over kills, fences and broker restarts."""

from __future__ import annotations

import random
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio

from gapconn.testing.kafka_broker import KafkaNode
from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import LIMIT_S, POLL_S, End, Ends

PARTITIONS = 2


def configure(
    ends: Ends, address: str, inputs: Iterable[str], output: str, *, name: str = "", dedup: str = "", kafka: str = ""
) -> None:
    """A file with an input for each of links a, b, ..."""
    lines = ["[dedup]", f'name = "{name or output}"', dedup]
    for link, topic in zip("abc", inputs, strict=False):
        lines += ["[[input]]", f'link = "{link}"', f'topic = "{topic}"']
    lines += ["[output]", f'topic = "{output}"']
    lines += ["[kafka]", f'bootstrap_servers = "{address}"', kafka]
    lines += ["[admin]", f'listen = "{ends.host}:0"', "[log]", 'format = "json"']
    ends.file.write_text("\n".join(lines) + "\n")


async def started(ends: Ends) -> End:
    end = ends.start("dedup")
    await end.wait_logged("dedup_started")
    return end


def copies(offsets: Iterable[int], *, partition: int, source: str = "orders", origin: bool = True) -> list[Entry]:
    """Records as an egress writes them."""
    return [
        Entry(
            value=b"%d" % offset,
            key=b"k%d" % offset,
            headers=[("own", b"1"), *([("gapconn-origin", f"c/{source}/{partition}/{offset}".encode())] * origin)],
            timestamp_ms=1_700_000_000_000 + offset,
            partition=partition,
        )
        for offset in offsets
    ]


def lossy(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Offsets over two links: each loses a fifth, and no record is lost on both."""
    chance = random.Random(seed)
    fate = [chance.random() for _ in range(count)]
    return (
        [offset for offset in range(count) if fate[offset] >= 0.2],
        [offset for offset in range(count) if fate[offset] < 0.8],
    )


def topics(kafka: Cluster, *, links: int = 2) -> tuple[list[str], str]:
    """Topics for the inputs, and one for the output."""
    return [kafka.create_topic(partitions=PARTITIONS) for _ in range(links)], kafka.create_topic(partitions=PARTITIONS)


def values(entries: Iterable[Entry]) -> dict[int, list[int]]:
    """The numbers in each partition, in the order of the log."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in entries:
        found[entry.partition].append(int(entry.value or b"-1"))
    return dict(found)


async def read_until(kafka: Cluster, topic: str, enough: Callable[[list[Entry]], bool]) -> list[Entry]:
    """Read the topic, again and again, until there is enough in it."""
    deadline_s = trio.current_time() + LIMIT_S
    while True:
        entries = await trio.to_thread.run_sync(kafka.read, topic)
        if enough(entries):
            return entries
        assert trio.current_time() < deadline_s, f"only {len(entries)} records within {LIMIT_S:g} s"
        await trio.sleep(POLL_S)


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


@pytest.mark.kafka
async def test_without_waiting_the_first_copy_passes_and_a_late_one_is_marked(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output)
    end = await started(ends)
    kafka.send(inputs[0], copies([0, 1, 4], partition=0))
    await read_until(kafka, output, lambda entries: len(entries) == 3)
    kafka.send(inputs[1], copies([0, 1, 2, 3, 4, 5], partition=0))
    entries = await read_until(kafka, output, lambda entries: len(entries) == 6)
    assert values(entries) == {0: [0, 1, 4, 2, 3, 5]}
    late = [int(entry.value or b"") for entry in entries if ("gapconn-late", b"1") in (entry.headers or [])]
    assert late == [2, 3]
    assert (await end.status())["output"]["late"] == 2


PIECE = 200
"""Offsets of a partition that are sent at once."""


def feed(kafka: Cluster, inputs: list[str], enough: threading.Event) -> int:
    """Both links at once, piece by piece, the second one a piece behind, until it is enough; how many pieces."""
    pieces = 0
    while not enough.is_set() or pieces < 10:
        send_piece(kafka, inputs[0], 0, pieces)
        if pieces:
            send_piece(kafka, inputs[1], 1, pieces - 1)
        pieces += 1
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
async def test_a_second_instance_takes_over_and_the_first_one_can_write_no_more(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output)
    first = await started(ends)
    kafka.send(inputs[0], copies(range(10), partition=0))
    await read_until(kafka, output, lambda entries: len(entries) == 10)
    second = await started(ends)
    kafka.send(inputs[1], copies(range(20), partition=0))
    assert await first.ended() == 1
    assert "has taken over" in first.logged("stopped_by_failure")[0]["reason"]
    entries = await read_until(kafka, output, lambda entries: len(entries) >= 20)
    assert values(entries) == {0: list(range(20))}
    assert await second.stop() == 0


@pytest.mark.kafka
async def test_a_silent_link_raises_the_alarm_and_is_said_to_be_back(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output, dedup='silent_after = "1s"\nlag_offsets = 100_000')
    end = await started(ends)
    for topic in inputs:
        kafka.send(topic, copies(range(10), partition=0))
    await end.until_status(lambda s: all(s["links"][link]["records"] == 10 for link in "ab"), "both links bring data")
    assert (await end.get("/health")).status_code == 200
    kafka.send(inputs[0], copies(range(10, 15), partition=0))
    alarm = await end.until_healthy(False)
    assert "link b has delivered nothing" in alarm.json()["problems"][0]
    assert (await end.wait_logged("link_silent"))["input"] == "b"
    status = await end.status()
    assert status["links"]["b"]["alarms"] == ["link_silent"]
    assert status["links"]["b"]["lag_offsets"] == 5
    assert status["links"]["a"]["alarms"] == []
    assert 'gapconn_dedup_input_alarm{input="b"' in (await end.get("/metrics")).text
    kafka.send(inputs[1], copies(range(10, 15), partition=0))
    await end.until_healthy(True)
    assert (await end.wait_logged("link_recovered"))["input"] == "b"
    assert values(kafka.read(output)) == {0: list(range(15))}


@pytest.mark.kafka
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


@pytest.mark.kafka
async def test_topics_that_fit_are_found_also_later_and_written_to_those_of_their_name(
    ends: Ends, kafka: Cluster
) -> None:
    mark = kafka.name()
    for topic in (f"{mark}-x", f"a-{mark}-x", f"b-{mark}-x"):
        kafka.create_topic(name=topic)
    configure(ends, kafka.address, [f"a-{mark}-{{topic}}", f"b-{mark}-{{topic}}"], f"{mark}-{{topic}}", name=mark)
    end = await started(ends)
    for link in "ab":
        kafka.send(f"{link}-{mark}-x", copies(range(5), partition=0, source="x"))
    await read_until(kafka, f"{mark}-x", lambda entries: len(entries) == 5)
    for link in "ab":
        kafka.create_topic(name=f"{link}-{mark}-y")
        kafka.send(f"{link}-{mark}-y", copies(range(3), partition=0, source="y"))
    missing = await end.wait_logged("topic_missing")
    assert missing["topic"] == f"{mark}-y"
    kafka.create_topic(name=f"{mark}-y")
    entries = await read_until(kafka, f"{mark}-y", lambda entries: len(entries) >= 3)
    assert values(entries) == {0: [0, 1, 2]}
    assert values(kafka.read(f"{mark}-x")) == {0: [0, 1, 2, 3, 4]}


@pytest.mark.kafka
async def test_by_content_copies_are_known_over_a_restart(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output, dedup='identity = "hash"')
    first = await started(ends)
    kafka.send(inputs[0], copies(range(50), partition=1, origin=False))
    await read_until(kafka, output, lambda entries: len(entries) == 50)
    await first.kill()
    second = await started(ends)
    kafka.send(inputs[1], copies(range(60), partition=1, origin=False))
    entries = await read_until(kafka, output, lambda entries: len(entries) >= 60)
    assert values(entries) == {1: list(range(60))}
    assert await second.stop() == 0


@pytest.mark.kafka
async def test_what_cannot_go_on_ends_it_and_says_why(ends: Ends, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    configure(ends, kafka.address, inputs, output, dedup='unidentified = "fail"')
    first = await started(ends)
    kafka.send(inputs[0], copies([0], partition=0, origin=False))
    assert await first.ended() == 1
    reason = first.logged("stopped_by_failure")[0]["reason"]
    assert f"the record at {inputs[0]}, partition 0, offset 0 has no id" in reason
    configure(ends, kafka.address, inputs, output, dedup='identity = "hash"')
    second = ends.start("dedup")
    assert await second.ended() == 1
    assert "holds a state of another kind" in second.logged("stopped_by_failure")[0]["reason"]
    kafka.configure_topic(output, max_message_bytes="2000")
    configure(ends, kafka.address, inputs, output)
    third = await started(ends)
    kafka.send(inputs[1], [Entry(value=random.Random(1).randbytes(5000), headers=[("gapconn-origin", b"c/t/0/1")])])
    assert await third.ended() == 1
    assert "rejects a record of 5000 bytes" in third.logged("stopped_by_failure")[0]["reason"]


async def test_mirrored_datagrams_of_two_links_become_one_stream(ends: Ends) -> None:
    addresses = [ends.free_address() for _ in range(2)]
    with socket.socket(type=socket.SOCK_DGRAM) as target, socket.socket(type=socket.SOCK_DGRAM) as mirror:
        target.bind((ends.host, 0))
        target.settimeout(LIMIT_S)
        lines = ["[dedup]", 'name = "mirror"', 'identity = "hash"', 'silent_after = "1s"']
        for link, address in zip("ab", addresses, strict=True):
            lines += ["[[input]]", 'type = "udp"', f'link = "{link}"', f'listen = "{address}"']
        lines += ["[output]", 'type = "udp"', f'send_to = "{ends.host}:{target.getsockname()[1]}"']
        lines += ["[admin]", f'listen = "{ends.host}:0"', "[log]", 'format = "json"']
        ends.file.write_text("\n".join(lines) + "\n")
        end = ends.start("dedup")
        await end.wait_logged("listening", 2)
        received: list[bytes] = []
        for number in range(20):
            for row, address in enumerate(addresses):
                if number % 5 != row:  # each link loses a fifth
                    mirror.sendto(b"%d" % number, (address.host, address.port))
            received.append(await trio.to_thread.run_sync(target.recv, 100))
        assert received == [b"%d" % number for number in range(20)]

        def both_came(status: dict[str, Any]) -> bool:
            return all(status["links"][link]["records"] == 16 for link in "ab")

        status = await end.until_status(both_came, "all came")
        assert sum(status["links"][link]["repeats"] for link in "ab") == 12
        mirror.sendto(b"more", (addresses[0].host, addresses[0].port))
        alarm = await end.until_healthy(False)
        assert "link b" in alarm.json()["problems"][0]
        assert await end.stop() == 0
        target.settimeout(0)
        assert target.recv(100) == b"more"
        with pytest.raises(BlockingIOError):
            target.recv(100)
