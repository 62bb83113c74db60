"""Where a link stands in its partitions: what its consumer group committed, and committing what was sent.

Each commit says in its metadata which link made it, and which record that link had sent before the offset. So whoever
gets the partition next knows whether the record before its first one crossed *this* link (then the chain of positions
goes on) or another pair's (then it restarts, and nothing is called lost).

Where the chain restarts, that is committed too, before anything is sent: a process that is killed before it could
commit what it sent leaves behind that it began here, and the next one goes on with that chain (GC-ONCE-1).
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, Protocol, TypeVar

import attrs
from confluent_kafka import Consumer, KafkaError, TopicPartition

from gapconn.kafka_client import BrokerWatch
from gapconn.pauses import delivered_at
from gapconn.plugins import Context
from gapconn.protocol.envelope import Span
from gapconn.record import NO_POSITION
from gapconn.sources.kafka_batches import Partition, Place

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 5.0
GIVEN_AWAY_S: Final = 60.0
"""How long it is remembered what was sent of a partition that somebody else has now."""
MISSED_SHOWN_MAX: Final = 100
_GIVEN_TO_ANOTHER: Final = (
    "another member has the partition: sent again here as soon as no monitor holds this ingress, or by the command at "
    "another pair"
)
_NOT_MOVED: Final = (
    "the group's offset is not known to be moved back: done when this ingress works again, if nobody else has the "
    "partition until then; where another pair has it, by the command there; if this process ends before, by the command"
)


class Ask(Protocol):
    """The answer to a request to the brokers; None, logged and counted, when there is none."""

    def __call__(self, request: Callable[[], T], /) -> T | None: ...


def commit_metadata(link_id: int, previous: int) -> str:
    """The text beside a committed offset: which link committed, and the last record it sent before the offset."""
    return f"gapconn link={link_id} previous={previous}"


def beginning_metadata(link_id: int, epoch: int) -> str:
    """The text beside an offset at which this session of this link began to read, having sent nothing yet."""
    return f"gapconn link={link_id} since={epoch}"


def began_in(committed: TopicPartition, link_id: int) -> int:
    """The session of this link that began at the committed offset and acknowledged nothing behind it; 0 if none did."""
    said = re.fullmatch(r"gapconn link=(\d+) since=(\d+)", committed.metadata or "")
    return int(said[2]) if said is not None and int(said[1]) == link_id and committed.offset >= 0 else 0


def chain_position(committed: TopicPartition, link_id: int) -> int:
    """The last record that this link sent before the committed offset; `NO_POSITION` when another one committed it."""
    said = re.fullmatch(r"gapconn link=(\d+) previous=(-?\d+)", committed.metadata or "")
    if said is None or int(said[1]) != link_id or int(said[2]) >= committed.offset:
        return NO_POSITION
    return int(said[2])


@attrs.frozen
class Target:
    """Where a group is to go on, and what is told beside that."""

    offset: int
    previous: int = NO_POSITION
    """The last position that this link sent before it in the same chain."""
    anew: bool = False
    """Whether what the egress has counts for nothing: it may be of another topic."""

    def metadata(self, link_id: int, began_in: int) -> str:
        """The text beside the offset; `began_in` is the session that began the chain."""
        if self.previous == NO_POSITION and not self.anew:
            return beginning_metadata(link_id, began_in)
        return commit_metadata(link_id, self.previous)


def rewound_to(partition: Partition, delivered: int | None) -> Target | None:
    """Where a group is to go on so that what its egress did not deliver is sent again (GC-DLV-24, GC-DLV-37).

    Args:
        partition: What this link did in it.
        delivered: The next position that the egress misses; None if it has never delivered anything of it.

    Returns:
        None to leave all as it is.
    """
    last = partition.last
    # It cannot have delivered what was never read of this topic; what it may have of the one before, nobody can tell.
    read = max(last, partition.handed)
    beyond = delivered is not None and partition.began != NO_POSITION and delivered > read + 1
    foreign = delivered is not None and (beyond or 0 < delivered <= partition.doubtful + 1)
    if delivered is not None and not foreign and (partition.taken_up != NO_POSITION or delivered > partition.began):
        target = Target(delivered, delivered - 1)
    elif partition.began != NO_POSITION:
        # What is before that was sent by another link, if the egress stands there: not by this chain.
        target = Target(partition.began, anew=foreign)
    else:
        return None
    return target if target.offset <= last else None


@attrs.frozen
class Rewind:
    """An offset of the group that is to be moved back."""

    offset: TopicPartition
    """With what is told beside it."""
    sent_up_to: int

    @property
    def place(self) -> Place:
        """Topic and number."""
        return self.offset.topic, self.offset.partition

    @property
    def span(self) -> Span:
        """What was sent in vain."""
        return Span(*self.place, self.offset.offset, self.sent_up_to)


def resend_command(span: Span) -> str:
    """What an operator types to have these sent again, at whichever pair of the group."""
    return (
        f"gapconn resend pair.toml --topic {shlex.quote(span.stream)} --partition {span.partition} "
        f"--offsets {span.first}-{span.last} --again"
    )


@attrs.frozen
class GivenAway:
    """A partition that is not assigned any more."""

    at: float
    """By the monotonic clock."""
    partition: Partition
    moved: bool
    """The group gave it to another member."""


@attrs.define
class Past:
    """What a source did in partitions that it has no more. It outlives a consumer."""

    given_away: list[GivenAway] = attrs.field(factory=list)
    """The last one at the end."""
    unmoved: dict[Place, Rewind] = attrs.field(factory=dict)
    """Where to go on instead, if nobody else has had the partition when it is assigned again."""
    missed: list[Span] = attrs.field(factory=list)
    """Sent in vain, and not to be gone back to."""
    _reached: dict[Place, int] = attrs.field(factory=dict)

    def reach(self, place: Place, position: int) -> None:
        """So far was sent, as far as the egress may stand there."""
        self._reached[place] = max(position, self._reached.get(place, NO_POSITION))

    def reached(self, place: Place) -> int:
        """How far it was ever sent."""
        return self._reached.get(place, NO_POSITION)


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
        past: Past | None = None,
    ) -> None:
        self.partitions: dict[Place, Partition] = {}
        self._past = past or Past()
        self._rewinding: dict[Place, Rewind] = {}
        """What is to be moved back now."""
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._watch = watch
        self._ask = ask
        self._start_at = start_at
        self._commit_interval_s = commit_interval_s
        self._next_commit = time.monotonic() + commit_interval_s

    def begin(self, assigned: list[TopicPartition]) -> list[TopicPartition] | None:
        """Take these partitions over: where to begin to read them; None when the brokers do not say, or not take it.

        Then nothing may be read: the egress could not tell what it has of it already.
        """
        committed = self._committed(assigned)
        if committed is not None:
            committed = self._gone_back(committed)
        if committed is None:
            return None
        starts, restarts = [], []
        for each in committed:
            place = (each.topic, each.partition)
            offset = each.offset if each.offset >= 0 else self._first(place)
            if offset is None:
                return None
            start = TopicPartition(*place, offset)
            previous, since = chain_position(each, self._context.link_id), began_in(each, self._context.link_id)
            doubtful = NO_POSITION
            if previous == NO_POSITION and not since:
                restarts.append(start)
                reached = self._past.reached(place)
                doubtful = reached if offset <= reached else NO_POSITION
            self.take_up(Partition(place=place, handed=previous, since=since, taken_up=previous, doubtful=doubtful))
            starts.append(start)
            self._log.info(
                "partition_assigned",
                topic=each.topic,
                partition=each.partition,
                committed=each.offset if each.offset >= 0 else None,
                chain="restarts" if previous == NO_POSITION and not since else "goes on",
            )
        return starts if self.commit_beginnings(restarts) else None

    def _gone_back(self, committed: list[TopicPartition]) -> list[TopicPartition] | None:
        """The group's offsets, moved back where that is still due; None if the brokers do not take it (GC-DLV-39)."""
        unmoved, link_id = self._past.unmoved, self._context.link_id
        ours: list[tuple[TopicPartition, Rewind]] = []
        others: list[tuple[TopicPartition, Rewind]] = []
        for each in committed:
            due = unmoved.get((each.topic, each.partition))
            if due is not None:
                ours_still = chain_position(each, link_id) != NO_POSITION or began_in(each, link_id) > 0
                (ours if ours_still else others).append((each, due))
        back = {due.place: due.offset for each, due in ours if due.offset.offset < each.offset}
        if back and self._insist(lambda: self.consumer.commit(offsets=list(back.values()), asynchronous=False)) is None:
            return None
        for _, due in (*ours, *others):
            del unmoved[due.place]
            if due.place in back:
                self._tell_rewound(due)
        for _, due in others:
            self._tell_missed("rewind_missed", due.span, _GIVEN_TO_ANOTHER, sent_again=True)
        return [back.get((each.topic, each.partition), each) for each in committed]

    def commit_beginnings(self, starts: list[TopicPartition]) -> bool:
        """Commit that this session begins at these offsets; whether the brokers have it (GC-ONCE-1)."""
        metadata = beginning_metadata(self._context.link_id, self._context.epoch)
        offsets = [TopicPartition(each.topic, each.partition, each.offset, metadata=metadata) for each in starts]
        return (
            not offsets or self._insist(lambda: self.consumer.commit(offsets=offsets, asynchronous=False)) is not None
        )

    def start(self, ends: tuple[int, int]) -> int:
        """Where to begin to read a partition with these ends, for which the group has no offset."""
        return ends[0] if self._start_at == "earliest" else ends[1]

    def _first(self, place: Place) -> int | None:
        ends = self.ends(place)
        return None if ends is None else self.start(ends)

    def _committed(self, partitions: list[TopicPartition]) -> list[TopicPartition] | None:
        """The group's offsets with their metadata; None without an answer."""
        if not partitions:
            return []
        return self._insist(lambda: self.consumer.committed(partitions, timeout=REQUEST_TIMEOUT_S))

    def _insist(self, request: Callable[[], list[TopicPartition] | None]) -> list[TopicPartition] | None:
        """The answer to a request, asked again for a while; None, counted and logged, when there is none."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self._ask(request)
            if answer is not None and all(offset.error is None for offset in answer):
                return answer
            time.sleep(0.1)  # The group's coordinator may be moving.
        self._counters["offsets_unknown"] += 1
        self._log.warning(
            "committed_offsets_unknown", effect="nothing is read of these partitions before they are known"
        )
        return None

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
        if partition.taken_up != NO_POSITION or partition.since:
            # Nobody else had it meanwhile: what was sent before it was given away can be gone back to again.
            given_away = self._past.given_away
            for each in reversed(given_away):
                if each.partition.place == partition.place:
                    given_away.remove(each)
                    break

    def give_away(self, place: Place, *, moved: bool = False) -> None:
        """The partition is not assigned any more, if it was.

        Args:
            place: Its topic and number.
            moved: Another member gets it.
        """
        partition = self.partitions.pop(place, None)
        if partition is not None:
            partition.owned = False
            now = time.monotonic()
            past = self._past
            past.given_away = [each for each in past.given_away if now - each.at < GIVEN_AWAY_S]
            past.given_away.append(GivenAway(now, partition, moved))
            past.reach(place, max(partition.last, partition.handed))

    def give_all_away(self) -> None:
        """No partition is assigned any more."""
        for place in list(self.partitions):
            self.give_away(place)

    def begin_anew(self, partition: Partition) -> None:
        """Its positions began again: what is still on its way of the topic before is not acknowledged any more."""
        place = partition.place
        self._past.reach(place, max(partition.last, partition.handed))
        self.partitions[place] = Partition(place=place, handed=NO_POSITION, doubtful=self._past.reached(place))

    # Going back (GC-DLV-24).

    def freeze(self, partitions: Iterable[Partition] | None = None) -> None:
        """What is still on its way is not noted as sent any more (GC-DLV-38). In Trio's thread, which notes it.

        Args:
            partitions: All that are assigned, if None.
        """
        for partition in list(self.partitions.values()) if partitions is None else partitions:
            partition.owned = False

    def rewind(
        self, cluster: str, positions: Mapping[str, int], timeout_s: float, partitions: Iterable[Partition]
    ) -> None:
        """Move what the group has committed back to where the egress stands, before they are given away.

        Nothing else is committed of a partition that is moved back.

        Args:
            cluster: The name in the keys.
            positions: By `cluster/topic/partition`, the next position that the egress misses.
            timeout_s: How long to try. A single try may take longer, if a broker hangs.
            partitions: Assigned ones, frozen.
        """
        for partition in partitions:
            target = rewound_to(partition, delivered_at(positions, cluster, *partition.place))
            if target is not None:
                del self.partitions[partition.place]
                self._past.reach(partition.place, target.offset - 1)
                self._rewinding[partition.place] = self._due(partition, target)
        deadline = time.monotonic() + timeout_s
        while self._rewinding:
            offsets = [due.offset for due in self._rewinding.values()]
            answer = self._ask(lambda: self.consumer.commit(offsets=offsets, asynchronous=False))  # noqa: B023
            for each in answer or []:
                due = self._rewinding.pop((each.topic, each.partition), None) if each.error is None else None
                if due is not None:
                    self._tell_rewound(due)
            if self._rewinding and time.monotonic() > deadline:
                self.give_up_rewind()
            elif self._rewinding:
                time.sleep(0.1)  # The group is being rebalanced, or its coordinator moves.

    def _due(self, partition: Partition, target: Target) -> Rewind:
        metadata = target.metadata(self._context.link_id, partition.since or self._context.epoch)
        return Rewind(TopicPartition(*partition.place, target.offset, metadata=metadata), partition.last)

    def give_up_rewind(self) -> None:
        """Say which offsets are not known to be moved back, and try no more before they are assigned again."""
        failed, self._rewinding = self._rewinding, {}
        for due in failed.values():
            self._put_off(due)

    def tell_of_given_away(self, cluster: str, positions: Mapping[str, int]) -> None:
        """Say what was sent in vain of what is not assigned any more since a while ago, and see to it (GC-DLV-39)."""
        given_away, self._past.given_away = self._past.given_away, []
        for each in given_away:
            target = rewound_to(each.partition, delivered_at(positions, cluster, *each.partition.place))
            if target is not None and time.monotonic() - each.at < GIVEN_AWAY_S:
                due = self._due(each.partition, target)
                if each.moved:
                    self._tell_missed("rewind_missed", due.span, _GIVEN_TO_ANOTHER, sent_again=True)
                else:
                    self._put_off(due)

    def _put_off(self, due: Rewind) -> None:
        self._past.unmoved[due.place] = due
        self._tell_missed("rewind_failed", due.span, _NOT_MOVED, sent_again=False)

    def _tell_rewound(self, due: Rewind) -> None:
        topic, number = due.place
        self._context.status.setdefault("rewound", {})[f"{topic}/{number}"] = due.offset.offset
        self._log.warning(
            "offsets_rewound", topic=topic, partition=number, offset=due.offset.offset, sent_up_to=due.sent_up_to
        )

    def _tell_missed(self, event: str, span: Span, effect: str, *, sent_again: bool) -> None:
        self._counters[event] += 1
        if sent_again:
            self._past.missed.append(span)
        facts = {
            "topic": span.stream,
            "partition": span.partition,
            "first_offset": span.first,
            "last_offset": span.last,
            "command": resend_command(span),
        }
        shown = [*self._context.status.get(event, []), facts]
        self._context.status[event] = shown[-MISSED_SHOWN_MAX:]
        self._log.error(event, **facts, effect=effect)

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
