"""The receiving half: what it drops and why, what it delivers, and what it says is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.envelope import Run
from gapconn.protocol.events import (
    Event,
    FollowReason,
    ForeignLinkDetected,
    LinkInterrupted,
    LinkRestored,
    MessageDelivered,
    MessagesLost,
    RecordsLost,
    RecordsMissing,
    SessionCutOff,
    SessionEnded,
    SessionFollowed,
)
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import DropReason, Flag, LossCause
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.states import ReceiverState
from gapconn.protocol.wire import Header, Slab
from gapconn.testing.memory_gap import datagrams_of
from tests.protocol.frames import EPOCH, LINK_ID, Egress, Session, plain, with_header, with_payload

E = TypeVar("E", bound=Event)


def only(kind: type[E], events: Iterable[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def bodies(events: Iterable[Event]) -> list[bytes]:
    return [bytes(event.body) for event in only(MessageDelivered, events)]


def lost(first: int, last: int, cause: LossCause = LossCause.GAP, epoch: int = EPOCH) -> MessagesLost:
    return MessagesLost(epoch=epoch, first=first, last=last, cause=cause)


def records_lost(first: int, count: int, cause: LossCause = LossCause.GAP, epoch: int = EPOCH) -> RecordsLost:
    return RecordsLost(epoch=epoch, first=first, count=count, cause=cause)


def run(previous: int, first: int, last: int) -> Run:
    return Run("s", 0, previous, first, last, last - first + 1)


def following(session: Session) -> Egress:
    """An egress that has heard the session from its start."""
    egress = Egress.make()
    egress.hear(session.startup())
    return egress


# -- what is dropped -----------------------------------------------------------------------------------------------

FAULTS: dict[DropReason, dict[str, int]] = {
    DropReason.TOO_SHORT: {},
    DropReason.BAD_MAGIC: {"magic": 0x4744},
    DropReason.UNSUPPORTED_VERSION: {"version": 2},
    DropReason.WRONG_SECURITY_MODE: {"flags": Flag.SEALED},
    DropReason.BAD_CHECK: {},
    DropReason.FOREIGN_LINK: {"link_id": LINK_ID + 1},
    DropReason.UNKNOWN_TYPE: {"type": 9},
    DropReason.MALFORMED: {"key_id": 1},
    DropReason.STALE_SESSION: {"epoch": EPOCH - 1},
    DropReason.CONFLICT: {"epoch": EPOCH + 1},
    DropReason.UNCONFIRMED_JUMP: {"sequence": 2_000_000},
    DropReason.TOO_LATE: {"sequence": 2},
    DropReason.DUPLICATE: {"sequence": 300_000},
    DropReason.OVER_LIMIT: {"message_bytes": (1 << 16) + 1, "blocks": 7},
    DropReason.INCONSISTENT_MESSAGE: {"message_bytes": 70},
    DropReason.NOT_NEEDED: {"symbol": 0},
}
"""Those that a datagram of a link that is not sealed can have."""
EXCLUSIVE = [
    {DropReason.STALE_SESSION, DropReason.CONFLICT},
    {DropReason.UNCONFIRMED_JUMP, DropReason.TOO_LATE, DropReason.DUPLICATE},
]
"""Faults of which a datagram can have only one."""


@pytest.mark.parametrize(
    "faults",
    [
        pair
        for pair in itertools.combinations_with_replacement(FAULTS, 2)
        if pair[0] == pair[1] or not any(set(pair) <= group for group in EXCLUSIVE)
    ],
    ids=lambda pair: " ".join(reason.name.lower() for reason in dict.fromkeys(pair)),
)
@pytest.mark.req("GC-MOD-5", "GC-WIRE-3", "GC-WIRE-4", "GC-SESS-12")
def test_a_datagram_with_two_faults_is_dropped_for_the_first(faults: tuple[DropReason, DropReason]) -> None:
    """In the order of the registry; and the datagram without its faults is taken."""
    egress = Egress.make()
    session = Session(symbol_bytes=40)
    startup = session.startup()
    first, second = session.message(bytes(9))
    egress.hear(startup, first, Session(sequence=300_000).heartbeat())
    good = with_header(second, sequence=300_001)
    # Where two faults change the same field, the stronger change is the one that has both.
    bad = with_header(good, **{**FAULTS[faults[1]], **FAULTS[faults[0]]})
    if DropReason.BAD_CHECK in faults:
        bad = bad[:-1] + bytes([bad[-1] ^ 1])
    if DropReason.TOO_SHORT in faults:
        bad = bad[:55]
    egress.hear(bad)
    assert egress.dropped == {faults[0]: 1}
    assert bodies(egress.hear(with_header(good, sequence=300_002))) == [bytes(9)]
    assert egress.dropped == {faults[0]: 1}


@given(st.integers(0, 119), st.integers(1, 255))
@settings(deadline=None)
@pytest.mark.req("GC-WIRE-2", "GC-WIRE-3")
def test_nothing_in_a_damaged_datagram_is_acted_on(place: int, change: int) -> None:
    session = Session()
    egress = following(session)
    egress.hear(session.shutdown(), after_s=1.0)
    newcomer = bytearray(Session(epoch=EPOCH + 1, previous_epoch=EPOCH, messages=0).startup())
    newcomer[place] ^= change
    assert egress.hear(bytes(newcomer), after_s=1.0) == []
    assert (egress.receiver.epoch, egress.receiver.silent_s(2.0)) == (EPOCH, 1.0)
    assert sum(egress.dropped.values()) == 1


@pytest.mark.req("GC-MOD-5")
def test_what_is_received_and_dropped_is_counted() -> None:
    session = Session(symbol_bytes=40)
    egress = following(session)
    first, second = session.message(bytes(9))
    egress.hear(first, first, b"", b"x" * 56, second, second, first)
    assert egress.dropped == {DropReason.DUPLICATE: 3, DropReason.TOO_SHORT: 1, DropReason.BAD_MAGIC: 1}
    counters = egress.receiver.counters
    assert (counters.datagrams, counters.bytes) == (8, 120 + 5 * 96 + 56)
    assert (counters.messages, counters.records, counters.body_bytes, counters.sessions) == (1, 1, 9, 1)


@pytest.mark.req("GC-SESS-12", "GC-LIM-3")
def test_a_foreign_link_is_raised_at_most_once_in_a_timeout() -> None:
    egress = following(Session())
    foreign, other = Session(link_id=8).startup(), Session(link_id=9).message(b"x")[0]
    assert egress.hear(foreign, foreign, other) == [ForeignLinkDetected(link_id=8)]
    assert only(ForeignLinkDetected, egress.hear(other, after_s=2.99)) == []
    assert ForeignLinkDetected(link_id=9) in egress.hear(other, after_s=0.01)
    assert egress.dropped == {DropReason.FOREIGN_LINK: 5}
    assert egress.receiver.counters.foreign_links == 2
    assert egress.receiver.epoch == EPOCH


@pytest.mark.req("GC-SEC-5")
def test_sealed_datagrams_are_dropped_whatever_stands_in_place_of_the_check() -> None:
    egress = following(Session())
    sealed = with_header(Session(sequence=1).heartbeat(), flags=Flag.SEALED)
    assert egress.hear(sealed, sealed[:-8] + bytes(16)) == []
    assert egress.dropped == {DropReason.WRONG_SECURITY_MODE: 2}


# -- what is delivered ---------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 5_000), max_size=8),
    mtu_bytes=st.integers(150, 2_000),
    burst_datagrams_max=st.integers(1, 64),
    known=st.booleans(),
)
@settings(deadline=None)
@pytest.mark.req("GC-MOD-1", "GC-MOD-2", "GC-MOD-3", "GC-DLV-2")
def test_on_a_path_that_loses_nothing_every_message_is_delivered(
    sizes: list[int], mtu_bytes: int, burst_datagrams_max: int, known: bool
) -> None:
    """From one facade to the other: nothing is dropped, lost or missed, and all is said."""
    sender = LinkSender(
        SenderSettings(
            link_id=LINK_ID,
            epoch=EPOCH,
            previous_epoch=EPOCH - 1 if known else 0,
            mtu_bytes=mtu_bytes,
            burst_datagrams_max=burst_datagrams_max,
        )
    )
    egress = Egress.make()
    receiver = egress.receiver
    for burst in [*sender.start(0.0), *sender.handle_timeout(3.0)]:
        receiver.receive(burst, 0.0)
    slab = Slab()
    position = -1
    for number, size in enumerate(sizes):

        def write(buffer: bytearray, offset: int, content: bytes = bytes([number]) * size) -> None:
            buffer += content

        sender.compose([run(position, position + 1, position + 2)], 2, write, 3.0 + number)
        position += 2
        while (built := sender.next_burst(slab)) is not None:
            receiver.receive(built, 0.0)
        for burst in sender.handle_timeout(3.0 + number):
            receiver.receive(burst, 0.0)
    for burst in sender.stop():
        receiver.receive(burst, 0.0)
    events = receiver.take_events()
    batches = [event for event in only(MessageDelivered, events) if event.record_count]
    assert [bytes(event.body) for event in batches] == [bytes([number]) * size for number, size in enumerate(sizes)]
    assert [event.first_record for event in batches] == [2 * number for number in range(len(sizes))]
    assert not any(event.already_delivered for event in batches)
    others = [event for event in events if not isinstance(event, MessageDelivered)]
    assert others == [
        SessionFollowed(epoch=EPOCH, previous_epoch=0, reason=FollowReason.FIRST_HEARD),
        SessionEnded(epoch=EPOCH, messages_sent=sender.counters.messages, records_sent=sender.counters.records),
    ]
    assert egress.dropped == {}
    assert (receiver.datagrams_missed, receiver.held_bytes, receiver.held_messages) == (0, 0, 0)
    assert (receiver.next_message, receiver.next_record) == (sender.counters.messages, 2 * len(sizes))
    assert receiver.next_deadline_s() is None


@given(st.data())
@settings(deadline=None, max_examples=150)
@pytest.mark.req("GC-MOD-1", "GC-MOD-2", "GC-MOD-4", "GC-DLV-10", "GC-DLV-12", "GC-DLV-13")
def test_every_message_is_delivered_or_reported_and_all_that_is_missing_is_counted(data: st.DataObject) -> None:
    session = Session(symbol_bytes=40)
    egress = following(session)
    messages = []
    for number in range(data.draw(st.integers(1, 6))):
        body = bytes([number]) * data.draw(st.sampled_from([0, 10, 60]))
        records = data.draw(st.integers(0, 3))
        messages.append((session.records, records, body, session.message(body, record_count=records)))
    path = [datagram for message in messages for datagram in message[3]]
    dropped = data.draw(st.sets(st.sampled_from(range(len(path)))))
    arriving = data.draw(st.permutations([d for i, d in enumerate(path) if i not in dropped]))
    copies = data.draw(st.lists(st.sampled_from(arriving), max_size=4)) if arriving else []
    events = egress.hear(arriving, copies, session.heartbeat()) + egress.wait(0.3)
    assert egress.dropped == ({DropReason.DUPLICATE: len(copies)} if copies else {})
    assert egress.receiver.datagrams_missed == len(dropped)

    number, seen, missing = 0, 0, 0
    for event in events:
        match event:
            case MessagesLost():
                assert (event.epoch, event.first, event.cause) == (EPOCH, number, LossCause.GAP)
                assert all(dropped & places_of(messages, n) for n in range(event.first, event.last + 1))
                number = event.last + 1
            case RecordsLost():
                assert event.first == seen
                missing += event.count
                seen += event.count
            case MessageDelivered():
                assert event.number == number
                assert (event.first_record, event.record_count, bytes(event.body)) == messages[number][:3]
                assert seen == event.first_record
                assert not dropped & places_of(messages, number)
                number, seen = number + 1, seen + event.record_count
            case _:
                pytest.fail(f"unexpected {event}")
    assert (number, seen) == (len(messages), session.records)
    assert (egress.receiver.next_message, egress.receiver.next_record) == (number, seen)
    counters = egress.receiver.counters
    assert counters.records + counters.records_lost == seen
    assert counters.records_lost == missing
    assert counters.messages + counters.messages_lost.total() == number


def places_of(messages: list[tuple[int, int, bytes, list[bytes]]], number: int) -> set[int]:
    """Where on the path the datagrams of a message are."""
    before = sum(len(message[3]) for message in messages[:number])
    return set(range(before, before + len(messages[number][3])))


@pytest.mark.req("GC-DLV-8", "GC-DLV-10", "GC-DLV-13")
def test_a_lost_message_holds_later_ones_back_for_the_hold() -> None:
    session = Session()
    egress = following(session)
    session.message(b"lost", record_count=7)
    assert egress.hear(session.message(b"later")) == []
    assert egress.wait(0.199) == []
    after = egress.wait(0.2 / 16 + 0.001)
    assert after[:2] == [lost(0, 0), records_lost(0, 7)]
    assert bodies(after) == [b"later"]


@pytest.mark.req("GC-DLV-10", "GC-DLV-12", "GC-DLV-13")
def test_a_loss_at_the_end_shows_on_an_idle_link() -> None:
    session = Session()
    egress = following(session)
    egress.hear(session.message(b"there", record_count=2))
    for _ in range(3):
        session.message(b"lost", record_count=5)
    assert egress.hear(session.heartbeat()) == []
    assert egress.receiver.datagrams_missed == 3
    assert egress.wait(0.3) == [lost(1, 3), records_lost(2, 15)]


@pytest.mark.req("GC-WIRE-11", "GC-MOD-1", "GC-DLV-13")
def test_a_damaged_message_is_lost_and_its_records_are_counted() -> None:
    session = Session(symbol_bytes=200)
    egress = following(session)
    datagrams = session.message(b"damaged inside", record_count=4)
    bad = with_payload(datagrams[0], datagrams[0][48:-9].replace(b"damaged", b"DAMAGED") + b"\0")
    assert egress.hear(bad) == [lost(0, 0, LossCause.DAMAGED)]
    assert egress.hear(session.message(b"next"))[0] == records_lost(0, 4, LossCause.DAMAGED)
    assert egress.dropped == {}


@pytest.mark.req("GC-LIM-2")
def test_a_message_over_the_limit_is_reported_like_any_other_loss() -> None:
    session = Session(symbol_bytes=1_000)
    egress = following(session)
    datagrams = session.message(bytes((1 << 16) + 1), record_count=3)
    assert egress.hear(datagrams) == []
    assert egress.dropped == {DropReason.OVER_LIMIT: len(datagrams)}
    assert egress.receiver.datagrams_missed == 0, "they arrived"
    assert egress.wait(0.3) == [lost(0, 0)]
    assert egress.hear(session.heartbeat()) == [records_lost(0, 3)]


@pytest.mark.req("GC-DLV-9", "GC-LIM-1")
def test_when_memory_is_full_the_oldest_missing_message_is_given_up() -> None:
    session = Session(symbol_bytes=100)
    egress = Egress.make(reassembly_bytes_max=3_000)
    egress.hear(session.startup())
    session.message(b"lost", record_count=3)
    events: list[Event] = []
    while not events:
        events = egress.hear(session.message(bytes(900)))
        assert egress.receiver.held_bytes <= 3_000
    assert events[:2] == [lost(0, 0, LossCause.OVERFLOW), records_lost(0, 3, LossCause.OVERFLOW)]
    assert [event.number for event in only(MessageDelivered, events)] == [1, 2, 3]


@pytest.mark.req("GC-DLV-14", "GC-DLV-15")
def test_missing_and_repeated_records_are_told_by_their_positions() -> None:
    session = Session()
    egress = following(session)
    egress.hear(session.message(b"", runs=[run(-1, 0, 4)], record_count=5))
    session.message(b"", runs=[run(4, 5, 9)], record_count=5)
    events = egress.hear(session.message(b"", runs=[run(9, 12, 14)], record_count=3)) + egress.wait(0.3)
    assert only(RecordsMissing, events) == [RecordsMissing(epoch=EPOCH, stream="s", partition=0, first=5, last=9)]
    assert events[:2] == [lost(1, 1), records_lost(5, 5)]
    (event,) = only(MessageDelivered, egress.hear(session.message(b"", runs=[run(9, 12, 20)], record_count=9)))
    assert event.already_delivered == {("s", 0): 14}
    session.message(b"", runs=[run(20, 30, 31)], record_count=2)
    events = egress.hear(session.positions(Run("s", 0, 31, 31, 31, 0))) + egress.wait(0.3)
    assert only(RecordsMissing, events) == [RecordsMissing(epoch=EPOCH, stream="s", partition=0, first=21, last=31)]
    assert egress.receiver.counters.records_missing_ranges == 2


@pytest.mark.req("GC-DLV-14", "GC-DLV-15", "GC-DLV-16")
@pytest.mark.parametrize("stored", [False, True], ids=["the egress runs on", "the egress is started again"])
@pytest.mark.parametrize("in_session", [False, True], ids=["in a new session", "in the midst of a session"])
def test_positions_that_begin_again_are_not_those_that_were_delivered_before(stored: bool, in_session: bool) -> None:
    """A source of datagrams counts from 0 again, and the first message of that is lost."""
    first = SenderSettings(link_id=LINK_ID, epoch=EPOCH, previous_epoch=EPOCH - 1)
    sender, egress = LinkSender(first), Egress.make()
    egress.hear(*(datagrams_of(burst) for burst in sender.start(0.0)))
    (event,) = only(MessageDelivered, egress.hear(numbers(sender, -1, 0, 1000)))
    if stored:
        egress = Egress.make(
            resume=Progress(epoch=EPOCH, next_message=1, next_record=1001, positions=dict(event.positions))
        )
    if not in_session:
        sender = LinkSender(attrs.evolve(first, epoch=EPOCH + 1, previous_epoch=EPOCH))
        egress.hear(*(datagrams_of(burst) for burst in sender.start(0.0)))
    numbers(sender, -1, 0, 9)  # lost
    events = [event for i in range(1, 200) for event in egress.hear(numbers(sender, 10 * i - 1, 10 * i, 10 * i + 9))]
    events += egress.hear(*(datagrams_of(burst) for burst in sender.stop())) + egress.wait(0.3)
    assert not any(event.already_delivered for event in only(MessageDelivered, events))
    arrived = [entry for event in only(MessageDelivered, events) for entry in event.runs if entry.count]
    assert [(entry.first, entry.last) for entry in arrived] == [(10 * i, 10 * i + 9) for i in range(1, 200)]
    epoch = sender.settings.epoch
    assert only(RecordsMissing, events) == [RecordsMissing(epoch=epoch, stream="s", partition=0, first=0, last=9)]


def numbers(sender: LinkSender, previous: int, first: int, last: int) -> list[bytes]:
    """The datagrams of a message with these positions."""
    sender.compose([run(previous, first, last)], last - first + 1, lambda buffer, offset: None, 0.0)
    bursts = []
    while (burst := sender.next_burst(Slab())) is not None:
        bursts += datagrams_of(burst)
    return bursts


@pytest.mark.req("GC-DLV-14", "GC-DLV-11")
def test_what_an_egress_did_not_hear_of_a_chain_before_it_joined_is_not_missing() -> None:
    session = Session(symbol_bytes=400)
    session.startup()
    session.message(b"", runs=[run(-1, 0, 9)], record_count=10)
    egress = Egress.make()
    events = egress.hear(session.message(b"", runs=[run(9, 10, 19)], record_count=10))
    assert only(RecordsMissing, events) == []
    other = Run("t", 0, -1, 5, 9, 5)
    session.message(b"", runs=[run(19, 20, 29), other], record_count=15)
    last = [run(29, 30, 39), Run("t", 0, 9, 10, 14, 5)]
    events = egress.hear(session.message(b"", runs=last, record_count=15)) + egress.wait(0.3)
    assert only(RecordsMissing, events) == [
        RecordsMissing(epoch=EPOCH, stream="s", partition=0, first=20, last=29),
        RecordsMissing(epoch=EPOCH, stream="t", partition=0, first=5, last=9),
    ]


# -- joining and resuming ------------------------------------------------------------------------------------------


@pytest.mark.req("GC-DLV-11", "GC-DLV-12", "GC-DLV-13")
@pytest.mark.parametrize("first_heard", ["data", "heartbeat"])
def test_what_was_sent_before_an_egress_joined_is_reported_as_such(first_heard: str) -> None:
    session = Session(symbol_bytes=100)
    session.startup()
    for _ in range(5):
        session.message(b"before", record_count=10)
    egress = Egress.make()
    events = egress.hear(session.heartbeat() if first_heard == "heartbeat" else session.message(b"first"))
    assert events[:2] == [
        SessionFollowed(epoch=EPOCH, previous_epoch=0, reason=FollowReason.FIRST_HEARD),
        lost(0, 4, LossCause.BEFORE_JOIN),
    ]
    assert only(RecordsLost, events) == [records_lost(0, 50, LossCause.BEFORE_JOIN)]
    assert egress.receiver.datagrams_missed == 0
    session.message(b"lost")
    events = egress.hear(session.message(b"last")) + egress.wait(0.3)
    assert only(MessagesLost, events) == [lost(session.messages - 2, session.messages - 2)]
    assert egress.receiver.datagrams_missed == 1


@pytest.mark.req("GC-DLV-11")
def test_an_egress_that_hears_the_start_reports_nothing_even_if_the_start_is_overtaken() -> None:
    session = Session(symbol_bytes=40)
    startups = [session.startup() for _ in range(3)]
    message = session.message(bytes(9))
    egress = Egress.make()
    events = egress.hear(message[1], startups[1], message[0], startups)
    assert only(MessagesLost, events) == []
    assert bodies(events) == [bytes(9)]
    assert egress.dropped == {DropReason.DUPLICATE: 1}
    assert egress.receiver.datagrams_missed == 0


STORED = Progress(epoch=EPOCH, next_message=3, next_record=30, positions={("s", 0): Standing(EPOCH, 0, 29)})


def sent_until(session: Session, messages: int) -> Session:
    session.startup()
    while session.messages < messages:
        first = session.records
        session.message(b"", runs=[run(first - 1, first, first + 9)], record_count=10)
    return session


@pytest.mark.req("GC-SESS-9", "GC-DLV-11", "GC-DLV-13")
def test_an_egress_with_stored_state_resumes_and_reports_what_it_was_not_there_for() -> None:
    session = sent_until(Session(symbol_bytes=100), 5)
    egress = Egress.make(resume=STORED)
    assert (egress.receiver.epoch, egress.receiver.state) == (EPOCH, ReceiverState.WAITING)
    events = egress.hear(session.message(b"now", runs=[run(49, 50, 50)]))
    assert events[:4] == [
        SessionFollowed(epoch=EPOCH, previous_epoch=EPOCH, reason=FollowReason.RESUMED),
        lost(3, 4, LossCause.WHILE_AWAY),
        records_lost(30, 20, LossCause.WHILE_AWAY),
        RecordsMissing(epoch=EPOCH, stream="s", partition=0, first=30, last=49),
    ]
    assert bodies(events) == [b"now"]


@pytest.mark.req("GC-SESS-9", "GC-MOD-2")
def test_an_egress_that_missed_nothing_resumes_without_a_report() -> None:
    session = sent_until(Session(symbol_bytes=100), 2)
    third = session.message(b"third", record_count=10)
    egress = Egress.make(resume=STORED)
    assert egress.hear(session.heartbeat(), third) == [
        SessionFollowed(epoch=EPOCH, previous_epoch=EPOCH, reason=FollowReason.RESUMED)
    ]
    assert egress.dropped == {DropReason.NOT_NEEDED: 1}, "it was delivered before"
    assert bodies(egress.hear(session.message(b"fourth"))) == [b"fourth"]


@pytest.mark.req("GC-SESS-9", "GC-SESS-5")
def test_an_egress_with_stored_state_drops_older_sessions() -> None:
    egress = Egress.make(resume=STORED)
    assert egress.hear(Session(epoch=EPOCH - 1).startup(), Session(epoch=EPOCH - 1).message(b"x")) == []
    assert egress.dropped == {DropReason.STALE_SESSION: 2}
    assert egress.receiver.state is ReceiverState.WAITING


@pytest.mark.req("GC-DLV-15", "GC-DLV-11", "GC-SESS-6")
def test_after_a_restart_of_both_ends_only_new_records_are_delivered() -> None:
    successor = Session(epoch=EPOCH + 1, previous_epoch=EPOCH, symbol_bytes=100)
    egress = Egress.make(resume=STORED)
    assert egress.hear(successor.startup()) == [
        SessionCutOff(epoch=EPOCH, next_message=3),
        SessionFollowed(epoch=EPOCH + 1, previous_epoch=EPOCH, reason=FollowReason.SUCCESSION),
    ]
    (event,) = only(MessageDelivered, egress.hear(successor.message(b"", runs=[run(19, 20, 34)], record_count=15)))
    assert (event.number, event.first_record, event.already_delivered) == (0, 0, {("s", 0): 29})


@pytest.mark.req("GC-DLV-11")
def test_an_egress_that_comes_back_to_a_later_session_was_away_for_its_beginning() -> None:
    later = sent_until(Session(epoch=EPOCH + 1, symbol_bytes=100), 4)
    egress = Egress.make(resume=STORED)
    events = egress.hear(later.heartbeat())
    assert events == [
        SessionCutOff(epoch=EPOCH, next_message=3),
        SessionFollowed(epoch=EPOCH + 1, previous_epoch=EPOCH, reason=FollowReason.FIRST_HEARD),
        lost(0, 3, LossCause.WHILE_AWAY, EPOCH + 1),
        records_lost(0, 40, LossCause.WHILE_AWAY, EPOCH + 1),
    ]


# -- sessions ------------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SESS-10", "GC-MOD-4", "GC-DLV-10")
def test_when_another_session_takes_the_link_the_old_one_is_settled_first() -> None:
    old = Session(symbol_bytes=40)
    egress = following(old)
    old.message(bytes(9), record_count=2)
    whole = old.message(bytes([1]) * 9)
    half = old.message(bytes(9))
    egress.hear(whole, half[0])
    new = Session(epoch=EPOCH + 1, previous_epoch=EPOCH, symbol_bytes=200)
    events = egress.hear(new.startup(), new.message(b"new"))
    ended = LossCause.SESSION_ENDED
    assert events[:2] == [lost(0, 0, ended), records_lost(0, 2, ended)]
    assert bodies(events[2:3]) == [bytes([1]) * 9]
    assert events[3:6] == [
        lost(2, 2, ended),
        SessionCutOff(epoch=EPOCH, next_message=3),
        SessionFollowed(epoch=EPOCH + 1, previous_epoch=EPOCH, reason=FollowReason.SUCCESSION),
    ]
    assert bodies(events[6:]) == [b"new"]
    assert egress.hear(half[1]) == []
    assert egress.dropped == {DropReason.STALE_SESSION: 1}
    assert egress.receiver.datagrams_missed == 2, "those of the first message; that the third had two was not known"


@pytest.mark.req("GC-SESS-10", "GC-DLV-13")
def test_what_the_old_session_announced_and_never_sent_is_lost_too() -> None:
    old = Session()
    egress = following(old)
    for _ in range(4):
        old.message(b"lost", record_count=3)
    egress.hear(old.heartbeat())
    events = egress.hear(Session(epoch=EPOCH + 1, previous_epoch=EPOCH).startup())
    ended = LossCause.SESSION_ENDED
    assert events[:2] == [lost(0, 3, ended), records_lost(0, 12, ended)]


@pytest.mark.req("GC-SESS-8", "GC-DLV-10", "GC-DLV-12")
def test_what_a_newcomer_sent_while_another_had_the_link_is_lost() -> None:
    egress = following(Session())
    new = Session(epoch=EPOCH + 1)
    egress.hear(new.startup(), new.message(b"x", record_count=2))
    assert egress.dropped == {DropReason.CONFLICT: 2}
    egress.wait(3.0)
    events = egress.hear(new.message(b"y")) + egress.wait(0.3)
    assert only(MessagesLost, events) == [lost(0, 0, epoch=EPOCH + 1)]
    assert only(RecordsLost, events) == [records_lost(0, 2, epoch=EPOCH + 1)]
    assert bodies(events) == [b"y"]
    assert egress.receiver.datagrams_missed == 2


@pytest.mark.req("GC-DLV-7")
def test_a_newcomer_that_has_sent_much_is_believed_at_its_second_datagram() -> None:
    egress = following(Session())
    egress.wait(3.0)
    new = Session(epoch=EPOCH + 1, sequence=5_000_000)
    first, second = new.heartbeat(), new.heartbeat()
    egress.hear(first)
    assert egress.receiver.epoch == EPOCH + 1
    assert (egress.receiver.announcement, egress.receiver.datagrams_missed) == (None, 0), "nothing is believed yet"
    assert egress.dropped == {DropReason.UNCONFIRMED_JUMP: 1}
    egress.hear(second, first)
    assert egress.receiver.datagrams_missed == 5_000_000
    assert egress.dropped == {DropReason.UNCONFIRMED_JUMP: 1}


@pytest.mark.req("GC-SESS-13")
def test_the_end_of_a_session_is_told_once() -> None:
    session = Session()
    egress = following(session)
    egress.hear(session.message(b"x", record_count=4))
    events = egress.hear(*(session.shutdown() for _ in range(3)), session.heartbeat())
    assert events == [SessionEnded(epoch=EPOCH, messages_sent=1, records_sent=4)]
    assert egress.receiver.state is ReceiverState.CLOSED
    assert egress.wait(100.0) == [], "silence is in order now"


@pytest.mark.req("GC-SESS-4", "GC-DLV-10")
def test_a_loss_before_a_shutdown_is_reported_after_it() -> None:
    session = Session()
    egress = following(session)
    session.message(b"lost", record_count=2)
    assert egress.hear(session.shutdown()) == [SessionEnded(epoch=EPOCH, messages_sent=1, records_sent=2)]
    assert egress.wait(0.3) == [lost(0, 0), records_lost(0, 2)]


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-TIME-2", "GC-SESS-13")
def test_the_timeout_that_the_session_announces_is_used() -> None:
    session = Session(symbol_bytes=100)
    egress = Egress.make(interruption_timeout_s=3.0)
    egress.hear(session.message(b"x"))
    assert egress.wait(2.99) == []
    assert egress.wait(0.02) == [LinkInterrupted(epoch=EPOCH, silent_s=3.0)], "its own, as nothing was announced"
    egress.hear(session.heartbeat(interruption_timeout_ms=1_500))
    assert egress.wait(1.49) == []
    assert len(only(LinkInterrupted, egress.wait(0.02))) == 1
    egress.hear(session.heartbeat(interruption_timeout_ms=1_500))
    egress.hear(Session(epoch=EPOCH + 1, previous_epoch=EPOCH).startup(interruption_timeout_ms=60_000))
    assert egress.wait(59.9) == []
    assert len(only(LinkInterrupted, egress.wait(0.2))) == 1
    assert egress.receiver.counters.interruptions == 3


@pytest.mark.req("GC-TIME-2")
def test_a_session_that_has_announced_nothing_is_not_judged_by_the_one_before() -> None:
    session = Session()
    egress = Egress.make(interruption_timeout_s=3.0)
    egress.hear(session.startup(interruption_timeout_ms=60_000), session.shutdown(interruption_timeout_ms=60_000))
    egress.hear(Session(epoch=EPOCH + 1).message(b"x"))
    assert egress.wait(2.99) == []
    assert len(only(LinkInterrupted, egress.wait(0.02))) == 1


@pytest.mark.req("GC-SESS-13")
def test_an_interruption_is_raised_and_cleared() -> None:
    session = Session()
    egress = following(session)
    assert egress.wait(5.0) == [LinkInterrupted(epoch=EPOCH, silent_s=3.0)]
    assert egress.receiver.state.value == "interrupted"
    assert egress.hear(session.heartbeat()) == [LinkRestored(epoch=EPOCH, silent_s=5.0)]
    assert egress.receiver.state.value == "following"


Trace = list[tuple[float, str]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.05, 0.15, 0.21, 1.0, 2.95, 3.0, 4.0]),
            st.sampled_from(["message", "lost", "heartbeat", "newcomer", "stale", "half", "shutdown", "successor"]),
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=150)
@pytest.mark.req("GC-TIME-3")
def test_it_does_not_matter_how_often_the_timer_is_called(trace: Trace) -> None:
    """Punctually, again and again, or only when a datagram comes: what is told is the same, each kind in its order."""
    told = []
    for waits in (Egress.wait, often, late):
        session = Session(symbol_bytes=100)
        egress = following(session)
        events: list[Event] = []
        for pause_s, what in trace:
            events += waits(egress, pause_s)
            session, datagrams = datagrams_for(what, session)
            events += egress.hear(datagrams)
        events += waits(egress, 10.0)
        egress.receiver.handle_timeout(egress.now_s)
        events += egress.receiver.take_events()
        told.append([plain(single, without="silent_s") for event in events for single in singles(event)])
    for kind in (MessageDelivered, MessagesLost, RecordsLost, LinkInterrupted, SessionFollowed):
        assert len({tuple(event for event in each if event[0] == kind.__name__) for each in told}) == 1
    assert sorted(told[0]) == sorted(told[1]) == sorted(told[2])


def singles(event: Event) -> list[Event]:
    """A report of a range as one for each of it: ranges that were given up one after the other may be told as one."""
    match event:
        case MessagesLost():
            return [lost(n, n, event.cause, event.epoch) for n in range(event.first, event.last + 1)]
        case RecordsLost():
            numbers = range(event.first, event.first + event.count)
            return [records_lost(n, 1, event.cause, event.epoch) for n in numbers]
        case _:
            return [event]


def often(egress: Egress, seconds: float) -> list[Event]:
    """Call the timer again and again."""
    steps = 23
    start_s = egress.now_s
    for step in range(steps):
        egress.receiver.handle_timeout(start_s + seconds * step / steps)
    egress.now_s = start_s + seconds
    return egress.receiver.take_events()


def late(egress: Egress, seconds: float) -> list[Event]:
    """Never call the timer."""
    egress.now_s += seconds
    return []


def datagrams_for(what: str, session: Session) -> tuple[Session, list[bytes]]:
    """What arrives next, and the session that goes on."""
    if what == "successor":
        successor = Session(epoch=session.epoch + 1, previous_epoch=session.epoch, symbol_bytes=100)
        return successor, [successor.startup()]
    if what == "lost":
        session.message(b"lost")
        return session, []
    datagrams = {
        "message": lambda: session.message(b"x"),
        "half": lambda: session.message(bytes(150))[:1],
        "heartbeat": lambda: [session.heartbeat()],
        "shutdown": lambda: [session.shutdown()],
        "newcomer": lambda: [Session(epoch=5_000).startup()],
        "stale": lambda: [Session(epoch=5).startup()],
    }
    return session, datagrams[what]()


@pytest.mark.req("GC-TIME-4")
def test_time_that_steps_back_is_no_time_passed() -> None:
    session = Session()
    egress = following(session)
    egress.hear(session.heartbeat(), after_s=100.0)
    session.message(b"lost")
    egress.hear(session.message(b"later"), after_s=-90.0)
    deadline = egress.receiver.next_deadline_s()
    assert deadline is not None
    assert 100.2 <= deadline <= 100.22
    egress.receiver.handle_timeout(5.0)
    assert egress.receiver.take_events() == []
    assert egress.receiver.next_deadline_s() == deadline
    assert egress.receiver.silent_s(5.0) == 0.0
    egress.receiver.handle_timeout(deadline)
    assert len(egress.receiver.take_events()) == 3


# -- the end of an egress ------------------------------------------------------------------------------------------


def test_an_egress_that_stops_delivers_what_is_complete_and_leaves_the_rest_to_its_next_life() -> None:
    session = Session(symbol_bytes=40)
    egress = following(session)
    session.message(bytes(9), record_count=2)
    egress.hear(session.message(bytes([1]) * 9), session.message(bytes(9))[:1], session.heartbeat())
    egress.receiver.close(egress.now_s)
    events = egress.receiver.take_events()
    assert events[:2] == [lost(0, 0), records_lost(0, 2)]
    assert bodies(events) == [bytes([1]) * 9]
    assert egress.receiver.next_message == 2
    stored = Progress(epoch=EPOCH, next_message=2, next_record=egress.receiver.next_record, positions={})
    again = Egress.make(resume=stored)
    assert again.hear(session.heartbeat())[1:] == [
        lost(2, 2, LossCause.WHILE_AWAY),
        records_lost(3, 1, LossCause.WHILE_AWAY),
    ]


def test_an_egress_that_never_heard_anything_stops_too() -> None:
    egress = Egress.make()
    egress.receiver.close(1.0)
    assert egress.receiver.take_events() == []
    assert (egress.receiver.epoch, egress.receiver.datagrams_missed) == (0, 0)


@pytest.mark.req("GC-FEC-4")
def test_a_session_with_repair_symbols_is_delivered_from_its_source_symbols() -> None:
    session = Session(symbol_bytes=40)
    egress = following(session)
    source = [with_header(d, repair_symbols=1) for d in session.message(bytes(9))]
    repair = with_header(source[1], symbol=2, sequence=session.sequence)
    session.sequence += 1
    events = egress.hear(source, repair, session.heartbeat(fec_source_symbols=2, fec_repair_symbols=1))
    assert bodies(events) == [bytes(9)]
    assert egress.dropped == {DropReason.NOT_NEEDED: 1}
    assert egress.receiver.datagrams_missed == 0
    assert Header.unpack(repair).symbol == 2


@pytest.mark.req("GC-SESS-14")
def test_a_session_whose_end_was_not_heard_is_reported_as_cut_off() -> None:
    old = Session(symbol_bytes=100)
    egress = Egress.make()
    egress.hear(old.startup(), old.message(b"x"))
    new = Session(epoch=EPOCH + 5, previous_epoch=EPOCH)
    assert only(SessionCutOff, egress.hear(new.startup())) == [SessionCutOff(epoch=EPOCH, next_message=1)]


@pytest.mark.req("GC-SESS-14")
def test_a_session_that_said_goodbye_is_not_cut_off() -> None:
    old = Session(symbol_bytes=100)
    egress = Egress.make()
    egress.hear(old.startup(), old.shutdown())
    new = Session(epoch=EPOCH + 5, previous_epoch=EPOCH)
    assert only(SessionCutOff, egress.hear(new.startup())) == []


@pytest.mark.req("GC-SESS-14")
def test_a_session_of_which_nothing_was_heard_is_reported_when_its_successor_names_it() -> None:
    old = Session(symbol_bytes=100)
    egress = Egress.make()
    egress.hear(old.startup(), old.shutdown())
    new = Session(epoch=EPOCH + 5, previous_epoch=EPOCH + 3)
    events = egress.hear(new.startup(), new.heartbeat())
    assert only(SessionCutOff, events) == [SessionCutOff(epoch=EPOCH + 3, next_message=0)]


@pytest.mark.req("GC-SESS-14", "GC-SESS-15")
def test_what_was_known_of_the_stored_session_and_not_delivered_is_reported_when_another_follows() -> None:
    stored = attrs.evolve(STORED, messages_known=5, records_known=70)
    egress = Egress.make(resume=stored)
    new = Session(epoch=EPOCH + 5, previous_epoch=EPOCH)
    assert egress.hear(new.startup())[:4] == [
        lost(3, 4, LossCause.WHILE_AWAY),
        records_lost(30, 40, LossCause.WHILE_AWAY),
        SessionCutOff(epoch=EPOCH, next_message=5),
        SessionFollowed(epoch=EPOCH + 5, previous_epoch=EPOCH, reason=FollowReason.SUCCESSION),
    ]
    assert egress.receiver.counters.messages_lost == {LossCause.WHILE_AWAY: 2}
    assert egress.receiver.counters.records_lost == 40


@pytest.mark.req("GC-SESS-14", "GC-SESS-15")
def test_a_stored_session_that_ended_and_was_delivered_leaves_nothing_to_report() -> None:
    stored = attrs.evolve(STORED, messages_known=3, records_known=30, ended=True)
    egress = Egress.make(resume=stored)
    events = egress.hear(Session(epoch=EPOCH + 5, previous_epoch=EPOCH).startup())
    assert [type(event) for event in events] == [SessionFollowed]
