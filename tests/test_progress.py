"""What may be stored: never ahead of the sink, never behind what is settled, whatever the order (GC-DLV-18)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.progress import ProgressTracker, continued, joined
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import (
    FollowReason,
    LinkInterrupted,
    MessageDelivered,
    MessageSettled,
    MessagesLost,
    RecordsLost,
)
from gapconn.protocol.events import SessionFollowed as Followed
from gapconn.protocol.positions import Standing, StreamPartition
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import LossCause

P = ("orders", 0)
EPOCH = 7


def message(
    number: int, *, records: int = 10, epoch: int = EPOCH, positions: Mapping[StreamPartition, Standing] | None = None
) -> MessageDelivered:
    """A message whose records are numbered as if all before it had as many."""
    return MessageDelivered(
        epoch=epoch,
        number=number,
        first_record=number * records,
        record_count=records,
        runs=[],
        already_delivered={},
        positions={P: Standing(epoch, 0, number * 100)} if positions is None else positions,
        body=memoryview(b"."),
    )


def followed(epoch: int = EPOCH, reason: FollowReason = FollowReason.FIRST_HEARD) -> Followed:
    return Followed(epoch=epoch, previous_epoch=0, reason=reason)


def lost(first: int, last: int, *, epoch: int = EPOCH) -> MessagesLost:
    return MessagesLost(epoch=epoch, first=first, last=last, cause=LossCause.GAP)


def records_lost(first: int, count: int, *, epoch: int = EPOCH) -> RecordsLost:
    return RecordsLost(epoch=epoch, first=first, count=count, cause=LossCause.GAP)


def progress(
    next_message: int, next_record: int, position: int | None = None, epoch: int = EPOCH, at: int | None = None
) -> Progress:
    return Progress(
        epoch=epoch,
        next_message=next_message,
        next_record=next_record,
        positions={} if position is None else {P: Standing(epoch if at is None else at, 0, position)},
        messages_known=next_message,
        records_known=next_record,
    )


@pytest.mark.req("GC-DLV-18")
def test_nothing_is_stored_before_the_sink_has_it() -> None:
    tracker = ProgressTracker()
    accept = tracker.expect(message(0))
    assert tracker.take() is None
    assert tracker.waiting == 1
    accept()
    assert tracker.take() == progress(1, 10, 0)
    assert tracker.waiting == 0
    assert tracker.take() is None, "nothing new"


@pytest.mark.req("GC-DLV-18")
def test_it_ends_before_the_first_message_that_is_not_accepted() -> None:
    tracker = ProgressTracker()
    accepts = [tracker.expect(message(number)) for number in range(5)]
    for number in (4, 2, 1):
        accepts[number]()
        assert tracker.take() is None
    accepts[0]()
    assert tracker.take() == progress(3, 30, 200)
    accepts[3]()
    assert tracker.take() == progress(5, 50, 400)


@pytest.mark.req("GC-DLV-18")
def test_accepting_twice_is_accepting_once() -> None:
    tracker = ProgressTracker()
    accepts = [tracker.expect(message(number)) for number in range(3)]
    for _ in range(3):
        accepts[1]()
    assert tracker.take() is None
    accepts[0]()
    accepts[0]()
    assert tracker.take() == progress(2, 20, 100)
    assert tracker.waiting == 1


def test_only_positions_that_changed_are_stored_again() -> None:
    tracker = ProgressTracker()
    tracker.expect(message(0, positions={("a", 0): Standing(EPOCH, 0, 1), ("b", 0): Standing(EPOCH, 0, 1)}))()
    first = tracker.take()
    assert first is not None
    assert first.positions == {("a", 0): Standing(EPOCH, 0, 1), ("b", 0): Standing(EPOCH, 0, 1)}
    tracker.expect(message(1, positions={("b", 0): Standing(EPOCH, 0, 2)}))()
    tracker.expect(message(2, positions={("b", 0): Standing(EPOCH, 0, 3)}))()
    second = tracker.take()
    assert second is not None
    assert second.positions == {("b", 0): Standing(EPOCH, 0, 3)}


def test_losses_are_settled_without_the_sink_but_not_before_what_is_open() -> None:
    tracker = ProgressTracker()
    tracker.happened(lost(0, 4))
    tracker.happened(records_lost(0, 50))
    assert tracker.take() == progress(5, 50)
    accept = tracker.expect(message(5))
    tracker.happened(lost(6, 9))
    tracker.happened(records_lost(60, 40))
    assert tracker.take() is None
    accept()
    assert tracker.take() == progress(10, 100, 500)


def test_records_lost_at_the_end_are_stored_so_that_they_are_not_reported_again() -> None:
    tracker = ProgressTracker()
    tracker.expect(message(0))()
    tracker.happened(lost(1, 1))
    tracker.happened(records_lost(10, 10))
    assert tracker.take() == progress(2, 20, 0)


def test_stored_progress_is_built_upon() -> None:
    """The first thing after a restart may be a loss: it must not throw the count of records back."""
    tracker = ProgressTracker(progress(100, 1000, 5))
    assert tracker.take() is None
    tracker.happened(followed(reason=FollowReason.RESUMED))
    assert tracker.take() is None
    tracker.happened(lost(100, 109))
    assert tracker.take() == progress(110, 1000)
    tracker.happened(records_lost(1000, 100))
    assert tracker.take() == progress(110, 1100)


@pytest.mark.req("GC-SESS-5", "GC-SESS-9")
def test_a_new_session_is_stored_at_once_and_behind_the_old_one() -> None:
    """An egress that is killed before the first message of a session must not follow an older one again."""
    tracker = ProgressTracker(progress(100, 1000))
    accept = tracker.expect(message(100))
    tracker.happened(lost(101, 102))
    tracker.happened(followed(EPOCH + 1))
    assert tracker.take() is None
    accept()
    assert tracker.take() == progress(0, 0, 10_000, epoch=EPOCH + 1, at=EPOCH)
    tracker.expect(message(0, epoch=EPOCH + 1))()
    assert tracker.take() == progress(1, 10, 0, epoch=EPOCH + 1)


def test_other_events_change_nothing() -> None:
    tracker = ProgressTracker()
    tracker.happened(LinkInterrupted(epoch=EPOCH, silent_s=1.0))
    assert tracker.take() is None


@pytest.mark.req("GC-LIM-1")
def test_a_sink_that_hangs_does_not_make_it_grow() -> None:
    """Behind a message that is never accepted, everything is refused or lost: for days, if it must be."""
    tracker = ProgressTracker()
    hanging = tracker.expect(message(0))
    for number in range(1, 1000):
        tracker.expect(message(number))()
        tracker.happened(lost(number + 1, number + 1))
        tracker.happened(records_lost(number * 10, 1))
    assert len(tracker._open) <= 3
    assert tracker.take() is None
    hanging()
    stored = tracker.take()
    assert stored is not None
    assert (stored.next_message, stored.positions) == (1001, {P: Standing(EPOCH, 0, 99_900)})


@pytest.mark.req("GC-DLV-18")
@settings(deadline=None)
@given(st.data())
def test_against_a_naive_count(data: st.DataObject) -> None:
    """Any order of messages, losses, sessions and acceptances; a naive list of all that happened is the oracle."""
    tracker = ProgressTracker()
    # Whether it is settled; epoch, next message, next record (None: as before); positions.
    facts: list[tuple[bool, tuple[int, int | None, int | None], dict[StreamPartition, Standing]]] = []
    accepts: dict[int, Callable[[], None]] = {}
    epoch = number = 0
    stored_positions: dict[StreamPartition, Standing] = {}
    stored = (0, 0, 0)
    for what in data.draw(st.lists(st.sampled_from("mmmmlrfaaaat"), max_size=60)):
        if what == "m":
            positions = {("s", number % 3): Standing(epoch, 0, number)}
            accepts[len(facts)] = tracker.expect(message(number, epoch=epoch, positions=positions))
            facts.append((False, (epoch, number + 1, number * 10 + 10), positions))
            number += 1
        elif what == "l":
            tracker.happened(lost(number, number + 2, epoch=epoch))
            number += 3
            facts.append((True, (epoch, number, None), {}))
        elif what == "r":
            tracker.happened(records_lost(number * 10 - 5, 5, epoch=epoch))
            facts.append((True, (epoch, None, number * 10), {}))
        elif what == "f":
            epoch, number = epoch + 1, 0
            tracker.happened(followed(epoch))
            facts.append((True, (epoch, 0, 0), {}))
        elif what == "a" and accepts:
            which = data.draw(st.sampled_from(sorted(accepts)))
            accepts.pop(which)()
            facts[which] = (True, *facts[which][1:])
        elif what == "t":
            took = tracker.take()
            if took is not None:
                stored = (took.epoch, took.next_message, took.next_record)
                stored_positions |= took.positions
            settled = facts[: next((i for i, fact in enumerate(facts) if not fact[0]), len(facts))]
            expected: list[int] = [0, 0, 0]
            expected_positions: dict[StreamPartition, Standing] = {}
            for _, (in_epoch, next_message, next_record), positions in settled:
                if in_epoch != expected[0]:
                    expected = [in_epoch, 0, 0]
                expected[1] = expected[1] if next_message is None else next_message
                expected[2] = expected[2] if next_record is None else next_record
                expected_positions |= positions
            assert stored == tuple(expected)
            assert stored_positions == expected_positions
    assert tracker.waiting == len(accepts)


def test_what_is_known_to_have_been_sent_is_stored_as_owed() -> None:
    tracker = ProgressTracker()
    accept = tracker.expect(message(0))
    tracker.known(EPOCH, 3, 35, ended=True)
    accept()
    stored = tracker.take()
    assert stored is not None
    assert (stored.next_message, stored.messages_known, stored.records_known, stored.ended) == (1, 3, 35, True)
    tracker.known(EPOCH, 3, 35, ended=True)
    assert tracker.take() is None, "nothing new"


def test_what_is_known_of_a_later_session_is_not_said_of_the_one_that_waits() -> None:
    tracker = ProgressTracker(progress(1, 10))
    accept = tracker.expect(message(1))
    tracker.known(EPOCH, 4, 40, ended=True)
    tracker.happened(followed(EPOCH + 1))
    tracker.known(EPOCH + 1, 9, 90, ended=False)
    waiting = tracker.take()
    assert waiting is not None
    assert (waiting.epoch, waiting.messages_known, waiting.ended) == (EPOCH, 4, True)
    accept()
    later = tracker.take()
    assert later is not None
    assert (later.epoch, later.next_message, later.messages_known, later.ended) == (EPOCH + 1, 0, 9, False)


# Where the target says how far it has come.

Q = ("orders", 1)


def standing(position: int, epoch: int = EPOCH, chain: int = 0) -> Standing:
    return Standing(epoch, chain, position)


def at(next_message: int, epoch: int = EPOCH, known: int = 0, **positions: Standing) -> Progress:
    """Progress with ten records in each message; `p` and `q` are two partitions."""
    return Progress(
        epoch=epoch,
        next_message=next_message,
        next_record=10 * next_message,
        positions={{"p": P, "q": Q}[name]: each for name, each in positions.items()},
        messages_known=known,
        records_known=10 * known,
    )


@pytest.mark.req("GC-ONCE-3")
@pytest.mark.parametrize(
    ("stored", "target", "expected"),
    [
        pytest.param(None, None, None, id="neither"),
        pytest.param(at(5, p=standing(50)), None, at(5, p=standing(50)), id="the target says nothing"),
        pytest.param(None, at(5, p=standing(50)), at(5, p=standing(50)), id="without state"),
        pytest.param(
            at(4, known=9, p=standing(40), q=standing(7)),
            at(6, p=standing(60)),
            at(6, known=9, p=standing(60), q=standing(7)),
            id="killed before it stored what was committed",
        ),
        pytest.param(
            at(9, known=9, p=standing(90)),
            at(6, p=standing(60), q=standing(3)),
            at(9, known=9, p=standing(90), q=standing(3)),
            id="the egress is ahead by what is in its spool",
        ),
        pytest.param(
            at(2, epoch=8, known=2, p=standing(5, 8, chain=1)),
            at(6, p=standing(60)),
            at(2, epoch=8, known=2, p=standing(5, 8, chain=1)),
            id="a partition was made anew in a later session",
        ),
        pytest.param(
            at(8, known=8, p=standing(5, chain=7)),
            at(6, p=standing(60)),
            at(8, known=8, p=standing(5, chain=7)),
            id="a later chain is the later one, wherever it stands",
        ),
        pytest.param(
            at(6, known=30, p=standing(60)),
            at(1, epoch=9, p=standing(70, 9)),
            at(1, epoch=9, known=1, p=standing(70, 9)),
            id="another egress has delivered a later session",
        ),
    ],
)
def test_an_egress_goes_on_behind_what_it_has_settled_and_what_its_target_has(
    stored: Progress | None, target: Progress | None, expected: Progress | None
) -> None:
    assert joined(stored, target) == expected


def ahead(number: int, records: int = 10) -> MessageDelivered:
    run = Run("orders", 0, number * 100 - 1, number * 100, number * 100 + 9, records, 0, False, 0)
    return attrs.evolve(message(number, records=records, positions={}), ahead=True, runs=[run])


@pytest.mark.req("GC-DLV-36")
def test_what_was_accepted_ahead_is_stored_at_once_and_settled_in_its_turn() -> None:
    tracker = ProgressTracker()
    tracker.happened(followed())
    accept_first, accept_third = tracker.expect(message(0)), tracker.expect(ahead(2))
    accept_first()
    accept_third()
    took = tracker.take()
    assert took is not None
    assert (took.next_message, [each.number for each in took.ahead]) == (1, [2])
    assert tracker.take() is None, "only what is new is given again"
    tracker.expect(message(1))()
    reached = Standing(EPOCH, 0, 209)
    tracker.happened(MessageSettled(epoch=EPOCH, number=2, next_record=30, positions={P: reached}))
    took = tracker.take()
    assert took is not None
    assert (took.next_message, took.next_record, took.ahead, took.positions) == (3, 30, (), {P: reached})


@pytest.mark.req("GC-DLV-36", "GC-DLV-19")
def test_what_is_in_the_spool_ahead_is_known_and_settled_with_the_messages_before_it() -> None:
    reached = continued(None, [message(0), ahead(2), ahead(3)])
    assert reached is not None
    assert (reached.next_message, reached.next_record, reached.messages_known) == (1, 10, 4)
    assert [each.number for each in reached.ahead] == [2, 3]
    reached = continued(reached, [message(0), ahead(2), ahead(3), message(4, positions={})])
    assert reached is not None
    assert (reached.next_message, reached.next_record, reached.ahead) == (5, 50, ())
    assert reached.positions == {P: Standing(EPOCH, 0, 309)}


def test_what_could_not_be_stored_is_part_of_what_is_stored_next() -> None:
    tracker = ProgressTracker()
    first, second = (
        MessageDelivered(
            epoch=5,
            number=number,
            first_record=10 * number,
            record_count=10,
            runs=[],
            already_delivered={},
            positions={(stream, 0): Standing(5, 0, 10 * number + 9) for stream in streams},
            body=memoryview(b"."),
        )
        for number, streams in enumerate(("ab", "bc"))
    )
    tracker.expect(first)()
    taken = tracker.take()
    assert taken is not None
    tracker.expect(second)()
    tracker.give_back(taken)
    again = tracker.take()
    assert again is not None
    assert (again.next_message, again.next_record) == (2, 20)
    assert {stream: standing.position for (stream, _), standing in again.positions.items()} == {
        "a": 9,
        "b": 19,
        "c": 19,
    }
    assert tracker.take() is None
    tracker.give_back(again)
    assert tracker.take() == again, "also when nothing has happened since"
