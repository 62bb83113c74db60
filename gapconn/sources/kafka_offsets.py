"""Where a link stands in its partitions: what its consumer group committed, and committing what was sent.

Each commit says in its metadata which link made it, and which record that link had sent before the offset. So whoever
gets the partition next knows whether the record before its first one crossed *this* link (then the chain of positions
goes on) or another pair's (then it restarts, and nothing is called lost).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, Protocol, TypeVar

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_STORED, Consumer, KafkaError, TopicPartition

from gapconn.kafka_client import BrokerWatch
from gapconn.pauses import delivered_at
from gapconn.plugins import Context
from gapconn.record import NO_POSITION
from gapconn.sources.kafka_batches import Partition, Place

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 5.0
GIVEN_AWAY_S: Final = 60.0
"""How long it is remembered what was sent of a partition that somebody else has now."""


class Ask(Protocol):
    """The answer to a request to the brokers; None, logged and counted, when there is none."""

    def __call__(self, request: Callable[[], T], /) -> T | None: ...


def commit_metadata(link_id: int, previous: int) -> str:
    """The text beside a committed offset: which link committed, and the last record it sent before the offset."""
    return f"gapconn link={link_id} previous={previous}"


def chain_position(committed: TopicPartition, link_id: int) -> int:
    """The last record that this link sent before the committed offset; `NO_POSITION` when another one committed it."""
    said = re.fullmatch(r"gapconn link=(\d+) previous=(-?\d+)", committed.metadata or "")
    if said is None or int(said[1]) != link_id or int(said[2]) >= committed.offset:
        return NO_POSITION
    return int(said[2])


def rewound_to(partition: Partition, delivered: int | None) -> tuple[int, int] | None:
    """Where a group is to go on so that what its egress did not deliver is sent again (GC-DLV-24).

    Args:
        partition: What this link did in it.
        delivered: The next position that the egress misses; None if it has never delivered anything of it.

    Returns:
        The offset to commit, and the last position that this link sent before it in the same chain; None to leave all
        as it is.
    """
    last = max(partition.sent, partition.taken_up)
    if delivered is not None and (partition.taken_up != NO_POSITION or delivered > partition.began):
        offset, previous = delivered, delivered - 1
    elif partition.began != NO_POSITION:
        # What is before that was sent by another link, if the egress stands there: not by this chain.
        offset, previous = partition.began, NO_POSITION
    else:
        return None
    return (offset, previous) if offset <= last else None


def places_of(partitions: Iterable[TopicPartition]) -> list[Place]:
    """Topic and number of each."""
    return [(each.topic, each.partition) for each in partitions]


class Offsets:
    """The partitions that a consumer was assigned, and their offsets in the group.

    Used in the worker thread that calls the consumer; `Partition.sent` is written in Trio's thread.

    Attributes:
        consumer: To be set before anything else is used.
        partitions: What is assigned now.
    """

    consumer: Consumer

    def __init__(
        self,
        context: Context,
        watch: BrokerWatch,
        ask: Ask,
        *,
        start_at: Literal["earliest", "latest"],
        commit_interval_s: float,
    ) -> None:
        self.partitions: dict[Place, Partition] = {}
        self._given_away: dict[Place, tuple[float, Partition]] = {}
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._watch = watch
        self._ask = ask
        self._start_at = start_at
        self._commit_interval_s = commit_interval_s
        self._next_commit = time.monotonic() + commit_interval_s

    def committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """The group's offsets with their metadata; without an answer, what makes librdkafka ask for them itself."""
        if not partitions:
            return []
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while time.monotonic() < deadline:
            committed = self._ask(lambda: self.consumer.committed(partitions, timeout=REQUEST_TIMEOUT_S))
            if committed is not None and all(offset.error is None for offset in committed):
                return committed
            time.sleep(0.1)  # The group's coordinator may be moving.
        self._counters["chain_unknown"] += 1
        self._log.warning("committed_offsets_unknown", effect="the chains of positions restart")
        return [TopicPartition(*place, OFFSET_STORED) for place in places_of(partitions)]

    def start(self, committed: TopicPartition) -> int:
        """Where to begin to read."""
        if committed.offset >= 0 or committed.offset == OFFSET_STORED:
            return committed.offset
        if self._start_at == "earliest":
            return OFFSET_BEGINNING
        ends = self.ends((committed.topic, committed.partition))
        if ends is None:
            return OFFSET_END
        # Committed at once: else a crash before the first commit would make the next start begin at a later end.
        metadata = commit_metadata(self._context.link_id, NO_POSITION)
        self._commit_soon([TopicPartition(committed.topic, committed.partition, ends[1], metadata=metadata)])
        return ends[1]

    def ends(self, place: Place) -> tuple[int, int] | None:
        """The first offset that is there and the next one to be written."""
        return self._ask(lambda: self.consumer.get_watermark_offsets(TopicPartition(*place), timeout=REQUEST_TIMEOUT_S))

    def commit_now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._next_commit:
            self._next_commit = now + self._commit_interval_s
            offsets = self._to_commit(self.partitions.values())
            if offsets and not self._commit_soon(offsets):
                self._try_commit_again(offsets)

    def _commit_soon(self, offsets: list[TopicPartition]) -> bool:
        """Commit without waiting; the outcome is told to `_on_commit`. False when that could not even be tried."""

        def request() -> bool:
            self.consumer.commit(offsets=offsets, asynchronous=True)
            return True

        return self._ask(request) or False

    def commit_now(self, partitions: list[Partition]) -> None:
        offsets = self._to_commit(partitions)
        if offsets:
            answer = self._ask(lambda: self.consumer.commit(offsets=offsets, asynchronous=False))
            self.on_commit(None, offsets if answer is None else answer)

    def _to_commit(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        offsets = []
        for partition in partitions:
            sent = partition.sent  # Trio's thread may write it meanwhile.
            if sent != partition.committed:
                partition.committed = sent
                metadata = commit_metadata(self._context.link_id, sent)
                offsets.append(TopicPartition(*partition.place, sent + 1, metadata=metadata))
        return offsets

    def take_up(self, partition: Partition) -> None:
        """The partition is assigned from now on."""
        self.partitions[partition.place] = partition
        self._given_away.pop(partition.place, None)

    def give_away(self, place: Place) -> Partition | None:
        """The partition is not assigned any more; None if it was not."""
        partition = self.partitions.pop(place, None)
        if partition is not None:
            partition.owned = False
            self._given_away[place] = (time.monotonic(), partition)
        return partition

    def rewind(self, cluster: str, positions: Mapping[str, int], timeout_s: float) -> None:
        """Move what the group has committed back to where the egress stands, before the group is left (GC-DLV-24).

        Only in what is assigned. What was given away just before cannot be moved any more: that is said, with the
        offsets that may be missing.

        Args:
            cluster: The name in the keys.
            positions: By `cluster/topic/partition`, the next position that the egress misses.
            timeout_s: How long to try.
        """
        offsets = []
        for partition in self.partitions.values():
            target = rewound_to(partition, delivered_at(positions, cluster, *partition.place))
            if target is not None:
                offset, previous = target
                self._log.warning(
                    "offsets_rewound", topic=partition.place[0], partition=partition.place[1], offset=offset,
                    sent_up_to=max(partition.sent, partition.taken_up),
                )  # fmt: skip
                # From now on this is what was sent, also for a commit that has to be tried again.
                partition.owned = False
                partition.sent = partition.committed = offset - 1
                metadata = commit_metadata(self._context.link_id, previous)
                offsets.append(TopicPartition(*partition.place, offset, metadata=metadata))
        self._tell_of_given_away(cluster, positions)
        self._context.status["rewound"] = {f"{each.topic}/{each.partition}": each.offset for each in offsets}
        deadline = time.monotonic() + timeout_s
        while offsets:
            answer = self._ask(lambda: self.consumer.commit(offsets=offsets, asynchronous=False))  # noqa: B023
            failed = {(each.topic, each.partition) for each in answer or offsets if answer is None or each.error}
            offsets = [each for each in offsets if (each.topic, each.partition) in failed]
            if offsets and time.monotonic() > deadline:
                self._counters["rewind_failed"] += len(offsets)
                self._log.error(
                    "rewind_failed", offsets={f"{each.topic}/{each.partition}": each.offset for each in offsets},
                    effect="what was sent behind these offsets may be missing: send it again by gapconn resend",
                )  # fmt: skip
                return
            if offsets:
                time.sleep(0.1)  # The group is being rebalanced, or its coordinator moves.

    def _tell_of_given_away(self, cluster: str, positions: Mapping[str, int]) -> None:
        for place, (at, partition) in self._given_away.items():
            target = rewound_to(partition, delivered_at(positions, cluster, *place))
            if target is not None and time.monotonic() - at < GIVEN_AWAY_S:
                self._counters["rewind_missed"] += 1
                self._log.error(
                    "rewind_missed", topic=place[0], partition=place[1], first_offset=target[0],
                    last_offset=max(partition.sent, partition.taken_up),
                    effect="the partition had just been given to another member: send these again by gapconn resend",
                )  # fmt: skip

    def on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        failed = offsets if error is not None else [offset for offset in offsets if offset.error is not None]
        if failed:
            reason = error or failed[0].error
            self._counters["commit_failed"] += 1
            self._watch.warn("commit_failed", error=None if reason is None else reason.str(), effect="tried again")
            self._try_commit_again(failed)

    def _try_commit_again(self, offsets: list[TopicPartition]) -> None:
        for place in places_of(offsets):
            if place in self.partitions:
                self.partitions[place].committed = NO_POSITION
