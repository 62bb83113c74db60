"""What two links write to a cluster, and what the deduplicator makes of it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable

import trio

from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import LIMIT_S, POLL_S

PARTITIONS = 2


def dedup_file(
    address: str, inputs: Iterable[str], output: str, *, name: str = "", dedup: str = "", kafka: str = ""
) -> str:
    """A configuration with an input for each of links a, b, ..."""
    lines = ["[dedup]", f'name = "{name or output}"', dedup]
    for link, topic in zip("abc", inputs, strict=False):
        lines += ["[[input]]", f'link = "{link}"', f'topic = "{topic}"']
    lines += ["[output]", f'topic = "{output}"']
    lines += ["[kafka]", f'bootstrap_servers = "{address}"', kafka]
    return "\n".join(lines)


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
