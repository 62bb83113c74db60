"""What two pair files must not have in common beside what `gapconn.check` refuses: their identity at Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gapconn.config import Pair


def kafka_conflicts(a: Pair, b: Pair) -> Iterator[tuple[str, str]]:
    """Two that Kafka would take for one, each as (what is wrong, what to do).

    Sinks are told apart by the names of their links, which differ in any case.
    """
    ours, theirs = _kafka(a.source), _kafka(b.source)
    if ours is not None and theirs is not None and _same_cluster(ours, theirs) and ours.group_id == theirs.group_id:
        member = ours.client.get("group.instance.id")
        if member is not None and member == theirs.client.get("group.instance.id"):
            yield (
                f"both ingresses are the member {member!r} of consumer group {ours.group_id!r}: they would take the"
                " partitions from each other",
                'give one of them a "group.instance.id" of its own in source.client',
            )


def kafka_doubts(a: Pair, b: Pair) -> Iterator[tuple[str, str]]:
    """What is most likely a mistake, each as (what, what to do)."""
    ours, theirs = _kafka(a.source), _kafka(b.source)
    if ours is None or theirs is None or not _same_cluster(ours, theirs):
        return
    shared = sorted(set(ours.topics) & set(theirs.topics))
    if ours.group_id == theirs.group_id and set(ours.topics) != set(theirs.topics):
        yield (
            f"both are in consumer group {ours.group_id!r}, and read different topics: every restart of one stops the"
            " other for a moment",
            "give each a source.group_id of its own; pairs that share a load read the same topics",
        )
    elif ours.group_id != theirs.group_id and shared:
        sink, other = _kafka(a.sink), _kafka(b.sink)
        if sink is None or other is None or not _same_cluster(sink, other):
            return
        doubled = [topic for topic in shared if _target(sink, topic) == _target(other, topic)]
        if doubled:
            yield (
                f"both carry topic {', '.join(doubled)} into the same target topic, in two consumer groups: every"
                " record arrives twice",
                "to share the load give both the same source.group_id; for redundant links give each a sink.topic of"
                " its own, and remove the duplicates behind them",
            )


def _kafka(section: Any) -> Any:
    return section.config if section is not None and section.type == "kafka" else None


def _same_cluster(a: Any, b: Any) -> bool:
    """By the names of the brokers as they are written: a check looks nothing up."""
    ours, theirs = (
        {name.strip().lower() for name in each.bootstrap_servers.split(",") if name.strip()} for each in (a, b)
    )
    return bool(ours & theirs)


def _target(sink: Any, topic: str) -> str:
    name: str = sink.topic_map.get(topic, sink.topic.replace("{topic}", topic))
    return name
