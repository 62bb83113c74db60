"""Where a group goes back to when its egress is dead: never forward, never into another link's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import attrs
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from gapconn.kafka_client import BrokerWatch
from gapconn.plugins import Context
from gapconn.protocol.envelope import Span
from gapconn.record import NO_POSITION, Batch, Records
from gapconn.sources.kafka import KafkaSourceConfig, _Session
from gapconn.sources.kafka_batches import Hand, Partition
from gapconn.sources.kafka_offsets import (
    Offsets,
    Past,
    Target,
    beginning_metadata,
    commit_metadata,
    resend_command,
    rewound_to,
)
from gapconn.testing.pipes import RecordingOutlet, make_context

T = TypeVar("T")

LINK_ID, EPOCH = 7, 100
CLUSTER = "c"
BEGINNING = beginning_metadata(LINK_ID, EPOCH)


def partition(
    *,
    taken_up: int = NO_POSITION,
    began: int = NO_POSITION,
    sent: int = NO_POSITION,
    read: int = NO_POSITION,
    doubtful: int = NO_POSITION,
) -> Partition:
    handed = max(taken_up, sent, read)
    return Partition(place=("t", 0), handed=handed, taken_up=taken_up, began=began, sent=sent, doubtful=doubtful)


@pytest.mark.req("GC-DLV-24")
@pytest.mark.parametrize(
    ("of", "delivered", "expected"),
    [
        pytest.param(partition(began=0, sent=99), 60, Target(60, 59), id="sent in vain, in the chain"),
        pytest.param(partition(began=0, sent=99), 100, None, id="all delivered"),
        pytest.param(partition(began=0, sent=99, read=199), 150, None, id="never forward"),
        pytest.param(partition(began=40, sent=99), None, Target(40), id="nothing delivered, as far as is known"),
        pytest.param(partition(began=40, sent=99), 40, Target(40), id="nothing of this chain delivered"),
        pytest.param(partition(began=40, sent=99), 10, Target(40), id="what is before is another link's"),
        pytest.param(partition(taken_up=39, began=40, sent=99), 10, Target(10, 9), id="an earlier run of this link"),
        pytest.param(partition(taken_up=39, began=40, sent=99), 70, Target(70, 69), id="this run of this link"),
        pytest.param(partition(taken_up=39), 30, Target(30, 29), id="a restart that has sent nothing yet"),
        pytest.param(partition(taken_up=39), 40, None, id="a restart, and all was delivered"),
        pytest.param(partition(taken_up=39), 500, None, id="a restart, and more was delivered than is known here"),
        pytest.param(partition(taken_up=39), None, None, id="a restart, and nothing is known"),
        pytest.param(partition(began=40), 10, None, id="read, and nothing was sent"),
        pytest.param(partition(), 10, None, id="nothing was read"),
        pytest.param(partition(began=0, sent=9), 0, Target(0), id="from the beginning"),
    ],
)
def test_where_it_goes_on(of: Partition, delivered: int | None, expected: Target | None) -> None:
    assert rewound_to(of, delivered) == expected


@pytest.mark.req("GC-DLV-37")
@pytest.mark.parametrize(
    ("of", "delivered", "expected"),
    [
        pytest.param(partition(began=0, sent=99), 500, Target(0, anew=True), id="more than was ever read"),
        pytest.param(partition(began=0, sent=99, doubtful=39), 30, Target(0, anew=True), id="perhaps of the old topic"),
        pytest.param(partition(began=0, sent=99, doubtful=39), 40, Target(0, anew=True), id="all of the old topic"),
        pytest.param(partition(began=0, sent=20, doubtful=39), 40, Target(0, anew=True), id="the new one is shorter"),
        pytest.param(partition(began=0, sent=99, doubtful=39), 41, Target(41, 40), id="beyond the old topic"),
        pytest.param(partition(began=0, sent=99, doubtful=39), None, Target(0), id="nothing delivered"),
        pytest.param(partition(began=0, doubtful=39), 30, None, id="nothing sent of the new one"),
    ],
)
def test_a_position_of_an_earlier_topic_of_this_name_counts_for_nothing(
    of: Partition, delivered: int | None, expected: Target | None
) -> None:
    assert rewound_to(of, delivered) == expected


@pytest.mark.req("GC-DLV-24", "GC-DLV-37", "GC-ONCE-1")
def test_what_is_told_beside_the_offset() -> None:
    assert Target(60, 59).metadata(LINK_ID, EPOCH) == commit_metadata(LINK_ID, 59)
    assert Target(40).metadata(LINK_ID, EPOCH) == BEGINNING
    # The egress must not take what it has of the old topic for what this session sent of the new one.
    assert Target(40, anew=True).metadata(LINK_ID, EPOCH) == commit_metadata(LINK_ID, NO_POSITION)


@attrs.define
class Brokers:
    """In place of a consumer: what the group has committed."""

    offsets: dict[tuple[str, int], tuple[int, str]] = attrs.field(factory=dict)
    failing: bool = False
    meanwhile: Callable[[], None] = lambda: None
    """Done while a commit is on its way."""

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        self.meanwhile()
        if self.failing:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for each in offsets:
            self.offsets[each.topic, each.partition] = (each.offset, each.metadata or "")
        return offsets

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        nothing = (-1001, "")
        return [
            TopicPartition(each.topic, each.partition, offset, metadata=metadata)
            for each in partitions
            for offset, metadata in [self.offsets.get((each.topic, each.partition), nothing)]
        ]

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        return (0, 1000)


@attrs.define
class Group:
    """The offsets of one link in a group."""

    brokers: Brokers
    context: Context
    past: Past
    offsets: Offsets

    @classmethod
    def joined(cls) -> Group:
        context, past, brokers = make_context(link_id=LINK_ID, epoch=EPOCH), Past(), Brokers()

        def ask(request: Callable[[], T]) -> T | None:
            try:
                return request()
            except KafkaException:
                return None

        offsets = Offsets(context, BrokerWatch(context), ask, start_at="earliest", commit_interval_s=1000, past=past)
        offsets.consumer = cast(Consumer, brokers)
        return cls(brokers, context, past, offsets)

    def assigned(self, number: int = 0) -> Partition:
        """Take over a partition of the topic."""
        assert self.offsets.begin([TopicPartition("t", number)]) is not None
        return self.offsets.partitions["t", number]

    def sends(self, of: Partition, first: int, last: int) -> None:
        """Everything that was read was sent."""
        read(of, first, last).note_sent()

    def rewind(self, *, timeout_s: float = 0.0, **positions: int) -> None:
        """`p0=60`: the egress misses offset 60 of partition 0."""
        self.offsets.freeze()
        self.offsets.rewind(CLUSTER, keyed(positions), timeout_s, list(self.offsets.partitions.values()))

    def leave(self, **positions: int) -> None:
        """As when the consumer is closed."""
        self.offsets.commit_now(list(self.offsets.partitions.values()))
        self.offsets.give_all_away()
        if positions:
            self.offsets.tell_of_given_away(CLUSTER, keyed(positions))

    def committed(self, number: int = 0) -> tuple[int, str]:
        return self.brokers.offsets["t", number]

    def told(self, event: str) -> list[Span]:
        """What an operator is told to have been sent in vain."""
        return [
            Span(each["topic"], each["partition"], each["first_offset"], each["last_offset"])
            for each in self.context.status.get(event, [])
        ]

    def missed(self) -> list[Span]:
        """What others have, and is sent again."""
        assert self.told("rewind_missed") == self.past.missed
        return self.past.missed


def keyed(positions: dict[str, int]) -> dict[str, int]:
    return {f"{CLUSTER}/t/{name[1:]}": position for name, position in positions.items()}


def read(of: Partition, first: int, last: int) -> Hand:
    """A hand with these records, which waits to be sent."""
    if of.began == NO_POSITION:
        of.began = first
    of.handed = last
    positions = list(range(first, last + 1))
    records = Records(stream="t", partition=of.place[1], positions=positions, values=[b""] * len(positions))
    return Hand(batch=Batch(parts=[records]), partitions=[of])


@pytest.mark.req("GC-DLV-38")
def test_what_is_still_on_its_way_does_not_move_what_was_moved_back() -> None:
    """The link was so slow that not all was sent in the time for it: the rest follows while the group is left."""
    group = Group.joined()
    back, done = group.assigned(0), group.assigned(1)
    for of in (back, done):
        group.sends(of, 0, 99)
    late = [read(of, 100, 119) for of in (back, done)]

    def note_sent() -> None:
        for hand in late:
            hand.note_sent()

    group.brokers.meanwhile = note_sent
    group.rewind(p0=60, p1=100)
    group.leave(p0=60, p1=100)
    assert group.committed(0) == (60, commit_metadata(LINK_ID, 59))
    assert group.committed(1) == (100, commit_metadata(LINK_ID, 99)), "what came later was sent in vain"
    assert not group.missed()


@pytest.mark.req("GC-DLV-24", "GC-ONCE-1")
@pytest.mark.parametrize(("delivered", "metadata"), [(40, BEGINNING), (60, commit_metadata(LINK_ID, 59))])
def test_a_commit_of_before_that_failed_is_not_tried_again_in_another_way(delivered: int, metadata: str) -> None:
    """It would say that this link had sent the record before its own beginning: so its egress would miss that."""
    group = Group.joined()
    group.brokers.offsets["t", 0] = (40, commit_metadata(LINK_ID + 1, 39))
    group.sends(group.assigned(), 40, 99)
    group.rewind(p0=delivered)
    group.offsets.on_commit(KafkaError(KafkaError._TIMED_OUT), [TopicPartition("t", 0, 100)])
    group.leave(p0=delivered)
    assert group.committed() == (delivered, metadata)


@pytest.mark.req("GC-DLV-37")
@pytest.mark.parametrize("kept", [False, True])
def test_a_topic_that_was_made_again_is_gone_back_to_its_beginning(kept: bool) -> None:
    """`kept`: the group's offset outlived the topic, and is behind the end of the new one."""
    group = Group.joined()
    of = group.assigned()
    group.sends(of, 0, 39)
    late = read(of, 40, 49)
    if kept:
        group.offsets.begin_anew(of)
    else:
        group.offsets.give_away(of.place)
        group.brokers.offsets.clear()
        group.assigned()
    late.note_sent()
    group.sends(group.offsets.partitions["t", 0], 0, 60)
    # The egress stands at 30 in the old topic, and has nothing of the new one.
    group.rewind(p0=30)
    group.leave(p0=30)
    assert group.committed() == (0, commit_metadata(LINK_ID, NO_POSITION))


@pytest.mark.req("GC-DLV-39")
def test_what_cannot_be_gone_back_to_is_told_with_what_to_type() -> None:
    group = Group.joined()
    group.sends(group.assigned(0), 0, 99)
    group.sends(group.assigned(1), 0, 99)
    group.offsets.commit_now(list(group.offsets.partitions.values()))
    group.offsets.give_away(("t", 0), moved=True)
    group.rewind(p0=60, p1=70)
    group.leave(p0=60, p1=70)
    assert group.missed() == [Span("t", 0, 60, 99)]
    assert group.committed(1) == (70, commit_metadata(LINK_ID, 69))
    [told] = group.context.status["rewind_missed"]
    assert told["command"] == resend_command(Span("t", 0, 60, 99))
    assert group.context.counters["rewind_missed"] == 1
    group.leave(p0=60, p1=70)
    assert len(group.missed()) == 1, "once"


@pytest.mark.req("GC-DLV-39")
def test_what_was_given_away_is_not_forgotten_when_it_comes_back_from_another_member() -> None:
    group = Group.joined()
    group.sends(group.assigned(), 0, 99)
    group.offsets.commit_now(list(group.offsets.partitions.values()))
    group.offsets.give_away(("t", 0), moved=True)
    group.brokers.offsets["t", 0] = (150, commit_metadata(LINK_ID + 1, 149))
    group.sends(group.assigned(), 150, 169)
    group.rewind(p0=60)
    group.leave(p0=60)
    assert group.missed() == [Span("t", 0, 60, 99)]
    assert group.committed() == (150, BEGINNING)


@pytest.mark.req("GC-DLV-24")
def test_what_comes_back_with_nobody_between_is_gone_back_to_at_once() -> None:
    group = Group.joined()
    group.sends(group.assigned(), 0, 99)
    group.offsets.commit_now(list(group.offsets.partitions.values()))
    group.offsets.give_away(("t", 0))
    group.assigned()
    group.rewind(p0=60)
    group.leave(p0=60)
    assert not group.missed()
    assert group.committed() == (60, commit_metadata(LINK_ID, 59))


@pytest.mark.req("GC-DLV-39")
def test_offsets_that_cannot_be_moved_back_are_told_with_what_to_type() -> None:
    group = Group.joined()
    group.sends(group.assigned(), 0, 99)
    group.offsets.commit_now(list(group.offsets.partitions.values()))
    group.brokers.failing = True
    group.rewind(p0=60)
    group.brokers.failing = False
    group.leave(p0=60)
    assert group.committed() == (100, commit_metadata(LINK_ID, 99))
    assert group.told("rewind_failed") == [Span("t", 0, 60, 99)]
    assert (group.context.counters["rewind_failed"], group.missed()) == (1, [])
    assert not group.context.status.get("rewound")
    assert "--offsets 60-99" in group.context.status["rewind_failed"][0]["command"]


@pytest.mark.req("GC-DLV-39", "GC-DLV-24")
@pytest.mark.parametrize(
    ("delivered", "offset", "metadata"), [(60, 60, commit_metadata(LINK_ID, 59)), (20, 40, BEGINNING)]
)
def test_what_could_not_be_moved_back_is_when_it_is_assigned_again(delivered: int, offset: int, metadata: str) -> None:
    """As when the source had no client at the time of the pause: nobody else had the partition meanwhile."""
    group = Group.joined()
    group.brokers.offsets["t", 0] = (40, commit_metadata(LINK_ID + 1, 39))
    group.sends(group.assigned(), 40, 99)
    group.leave(p0=delivered)
    assert group.told("rewind_failed") == [Span("t", 0, offset, 99)]

    group.brokers.failing = True
    assert group.offsets.begin([TopicPartition("t", 0)]) is None, "not before the brokers have it"
    group.brokers.failing = False
    [start] = group.offsets.begin([TopicPartition("t", 0)]) or []
    assert (start.offset, group.committed()) == (offset, (offset, metadata))
    assert group.context.status["rewound"] == {"t/0": offset}
    assert not group.missed()
    group.sends(group.offsets.partitions["t", 0], offset, 99)
    group.leave()
    [start] = group.offsets.begin([TopicPartition("t", 0)]) or []
    assert start.offset == 100, "once"


@pytest.mark.req("GC-DLV-39")
def test_what_could_not_be_moved_back_before_another_had_it_is_sent_again() -> None:
    group = Group.joined()
    group.sends(group.assigned(), 0, 99)
    group.leave(p0=60)
    group.brokers.offsets["t", 0] = (120, beginning_metadata(LINK_ID + 1, EPOCH + 1))
    assert group.assigned().handed == NO_POSITION
    assert group.missed() == [Span("t", 0, 60, 99)]
    assert group.committed() == (120, BEGINNING)


def test_the_command_can_be_typed() -> None:
    assert resend_command(Span("a b", 3, 5, 9)).endswith("--topic 'a b' --partition 3 --offsets 5-9 --again")


@pytest.mark.req("GC-DLV-37")
def test_what_was_read_of_the_old_topic_goes_before_the_new_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the new one would seem to begin where the old one ended."""
    config, context = KafkaSourceConfig(bootstrap_servers="127.0.0.1:1", topics=["t"], group_id="g"), make_context()
    session = _Session(config, context, BrokerWatch(context), RecordingOutlet(), Past())
    try:
        offsets = session._offsets
        offsets.consumer = cast(Consumer, Brokers())
        monkeypatch.setattr(session, "_go_to", lambda place, offset: None)
        old = partition(began=0, sent=4_998)
        offsets.take_up(old)
        session._resets["t", 0] = 5_000
        session._left_over = [Message("t", 0, 4_999, None, b"", None, None, (1, 1000))]
        session._begin_again_where_needed()
        assert offsets.partitions["t", 0] is old
        session._left_over = []
        session._begin_again_where_needed()
        assert offsets.partitions["t", 0].doubtful == 4_998
        assert old.owned, "what is on its way of it is sent: nobody can read it again"
    finally:
        session._consumer.close()
