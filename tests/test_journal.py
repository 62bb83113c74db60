"""The journal: every loss is an entry, positions are open once, and what is closed is exactly what was settled."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.journal import ENTRIES_MAX, GATHER_MS, NOT_KNOWN, RANGES_MAX, Entry, Journal, Place
from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.events import MessageDelivered, MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.registry import LossCause
from gapconn.ranges import RangeSet

T, U = ("t", 0), ("u", 3)


def lost(first: int, last: int, *, epoch: int = 5, cause: LossCause = LossCause.GAP) -> MessagesLost:
    return MessagesLost(epoch=epoch, first=first, last=last, cause=cause)


def counted(count: int, *, epoch: int = 5) -> RecordsLost:
    return RecordsLost(epoch=epoch, first=0, count=count, cause=LossCause.GAP)


def missing(first: int, last: int, place: tuple[str, int] = T, *, epoch: int = 5) -> RecordsMissing:
    return RecordsMissing(epoch=epoch, stream=place[0], partition=place[1], first=first, last=last)


def message(number: int = 0, *, runs: tuple[Run, ...] = (), already: dict[tuple[str, int], int] | None = None,
            spans: tuple[Span, ...] = ()) -> MessageDelivered:  # fmt: skip
    return MessageDelivered(
        epoch=5, number=number, first_record=0, record_count=sum(run.count for run in runs), runs=list(runs),
        already_delivered=already or {}, positions={}, body=memoryview(b"x"), spans=spans,
    )  # fmt: skip


def told(*events: MessagesLost | RecordsLost | RecordsMissing, at_ms: int = 1_000) -> Journal:
    journal = Journal()
    for event in events:
        journal.happened(event, at_ms)
    return journal


def all_of(journal: Journal) -> dict[Place, list[tuple[int, int]]]:
    return {place: list(ranges) for place, ranges in journal.missing().items()}


@pytest.mark.req("GC-RPR-1")
def test_a_loss_is_one_entry_with_its_messages_records_and_positions() -> None:
    journal = told(lost(3, 4), counted(20), missing(10, 24), missing(0, 4, U))
    [entry] = journal
    assert entry == Entry(
        number=1, epoch=5, cause="gap", at_ms=1_000, last_at_ms=1_000, records=20,
        messages=RangeSet([(3, 4)]), missing={T: RangeSet([(10, 24)]), U: RangeSet([(0, 4)])},
    )  # fmt: skip
    assert (entry.open, journal.positions_missing) == (True, 20)


def test_losses_that_follow_closely_are_one_entry_and_later_ones_another() -> None:
    journal = told(lost(3, 4), counted(20), lost(5, 6), counted(20), missing(10, 24), missing(25, 40))
    journal.happened(lost(7, 7), 1_000 + GATHER_MS)
    journal.happened(lost(9, 9), 1_001 + 2 * GATHER_MS)
    journal.happened(lost(10, 10, cause=LossCause.OVERFLOW), 1_001 + 2 * GATHER_MS)
    assert [(entry.cause, list(entry.messages)) for entry in journal] == [
        ("gap", [(3, 7)]), ("gap", [(9, 9)]), ("overflow", [(10, 10)])
    ]  # fmt: skip
    assert all_of(journal) == {T: [(10, 40)]}


def test_what_is_reported_again_after_a_restart_is_not_opened_twice() -> None:
    journal = told(lost(3, 4), counted(20), missing(10, 24))
    journal.happened(lost(2, 6, cause=LossCause.WHILE_AWAY), 90_000)
    journal.happened(missing(5, 30), 90_000)
    first, second = journal
    assert (list(first.messages), list(second.messages)) == ([(3, 4)], [(2, 2), (5, 6)])
    assert first.missing == {T: RangeSet([(10, 24)])}
    assert second.missing == {T: RangeSet([(5, 9), (25, 30)])}
    assert all_of(journal) == {T: [(5, 30)]}


def test_a_message_without_records_is_no_loss() -> None:
    journal = told(lost(3, 3))
    assert len(journal.open_entries) == 1
    assert journal.unaccounted
    journal.accounted(4, 0)
    assert journal.unaccounted, "of another session"
    journal.accounted(5, 0)
    assert list(journal) == []
    journal.happened(lost(5, 5), 2_000)
    journal.happened(counted(1), 2_000)
    journal.accounted(5, 0)
    assert [list(entry.messages) for entry in journal] == [[(5, 5)]]
    journal.happened(lost(3, 3), 2_000)
    assert [list(entry.messages) for entry in journal] == [[(3, 3), (5, 5)]], "it is no longer known"


def test_where_is_told_by_a_later_session() -> None:
    journal = told(lost(3, 3, cause=LossCause.SESSION_ENDED), counted(9))
    journal.happened(missing(10, 24, epoch=6), 70_000)
    [entry] = journal
    assert (entry.epoch, entry.cause, entry.missing) == (5, "session_ended", {T: RangeSet([(10, 24)])})


def test_positions_without_a_lost_message_have_an_entry_of_their_own() -> None:
    journal = told(missing(10, 24))
    assert [(entry.cause, entry.missing) for entry in journal] == [(NOT_KNOWN, {T: RangeSet([(10, 24)])})]


def test_what_was_lost_before_the_egress_joined_is_not_mixed_with_later_losses() -> None:
    journal = told(lost(0, 9, cause=LossCause.BEFORE_JOIN), counted(90), missing(10, 24))
    assert [(entry.cause, bool(entry.missing)) for entry in journal] == [("before_join", False), (NOT_KNOWN, True)]


def test_a_refused_message_is_located_at_once() -> None:
    journal = Journal()
    runs = (Run("t", 0, 9, 10, 14, 5, 0, True, 0), Run("u", 3, 2, 3, 3, 1, 0, True, 0))
    journal.refused(message(8, runs=runs, already={T: 11, U: 3}), LossCause.REFUSED, 1_000)
    [entry] = journal
    assert (entry.cause, list(entry.messages), entry.records) == ("refused", [(8, 8)], 6)
    assert entry.missing == {T: RangeSet([(12, 14)])}, "what was there before is not missing"


def test_all_runs_of_a_refused_message_are_located() -> None:
    """A source that reads partitions in turn has several runs of one partition in a message."""
    journal = Journal()
    runs = (
        Run("t", 0, 9, 10, 14, 5, 0, True, 0),
        Run("u", 3, 2, 3, 3, 1, 0, True, 0),
        Run("t", 0, 14, 15, 17, 3, 0, True, 0),
        Run("t", 0, 17, 20, 20, 1, 0, True, 0),
    )
    journal.refused(message(8, runs=runs, already={T: 11}), LossCause.REFUSED, 1_000)
    [entry] = journal
    assert entry.missing == {T: RangeSet([(12, 17), (20, 20)]), U: RangeSet([(3, 3)])}


def test_what_a_sink_cannot_deliver_is_missing() -> None:
    journal = Journal()
    journal.sink_lost(("t", 0), 7, 7, "rejected: too large", 1_000)
    journal.sink_lost(("t", 0), 8, 8, "rejected: too large", 1_000)
    journal.sink_lost(("file", None), 0, 99, "hole", 1_000)
    assert [(entry.cause, entry.missing) for entry in journal] == [
        ("rejected: too large", {T: RangeSet([(7, 8)])}), ("hole", {("file", None): RangeSet([(0, 99)])})
    ]  # fmt: skip
    assert journal.claim("file", 0, 0, 99) == (), "bytes of a file are no records"


@pytest.mark.req("GC-RPR-7")
def test_exactly_what_was_settled_is_closed() -> None:
    journal = told(lost(3, 4), counted(20), missing(10, 24), missing(0, 4, U))
    assert journal.claim("t", 0, 0, 12) == ((10, 12),)
    assert journal.claim("t", 0, 11, 15) == ((13, 15),), "the rest is on its way"
    journal.repaired({T: ((10, 12),)}, 2_000)
    [entry] = journal
    assert (entry.missing[T], entry.repaired[T]) == (RangeSet([(13, 24)]), RangeSet([(10, 12)]))
    journal.repaired({T: ((13, 15),)}, 2_000)
    journal.is_gone(Span("t", 0, 0, 100, 0, "deleted"), 3_000)
    assert (entry.open, entry.gone) == (True, {T: RangeSet([(16, 24)])})
    journal.repaired({U: journal.claim("u", 3, 0, 9)}, 4_000)
    assert (entry.open, entry.outcome, entry.reason, entry.closed_ms) == (False, "unrecoverable", "deleted", 4_000)
    assert all_of(journal) == {}
    assert [each.number for each in journal.closed] == [1]


def test_an_entry_that_was_repaired_whole() -> None:
    journal = told(missing(10, 24))
    journal.repaired({T: journal.claim("t", 0, 10, 24)}, 2_000)
    assert [(entry.outcome, entry.closed_ms) for entry in journal] == [("repaired", 2_000)]


@pytest.mark.req("GC-RPR-7")
def test_a_repair_that_does_not_reach_the_sink_closes_nothing() -> None:
    journal = told(missing(10, 24))
    claimed = {T: journal.claim("t", 0, 10, 14)}
    repair = message(9, spans=(Span("t", 0, 10, 14, 5),))
    journal.refused(attrs.evolve(repair, claimed=claimed), LossCause.REFUSED, 2_000)
    journal.repaired(claimed, 2_000)
    assert all_of(journal) == {T: [(10, 24)]}
    assert len(journal) == 1, "what it carried was missing before"
    assert journal.claim("t", 0, 10, 14) == ((10, 14),)


def test_what_the_sink_rejects_of_a_repair_stays_open() -> None:
    journal = told(missing(10, 24))
    claimed = {T: journal.claim("t", 0, 10, 24)}
    journal.sink_lost(T, 12, 12, "rejected", 2_000)
    journal.repaired(claimed, 3_000)
    assert all_of(journal) == {T: [(12, 12)]}


def test_an_entry_is_closed_by_hand() -> None:
    journal = told(lost(3, 4), missing(10, 24))
    assert journal.close_by_hand([1, 7], "not needed", 2_000) == [1]
    assert journal.close_by_hand([1], "again", 3_000) == []
    [entry] = journal
    assert (entry.outcome, entry.reason, entry.closed_ms, journal.positions_missing) == (
        "by_hand",
        "not needed",
        2_000,
        0,
    )
    journal.happened(missing(25, 26), 2_500)
    assert [list(each.missing) for each in journal] == [[T], [T]], "a later loss is another entry"


@pytest.mark.req("GC-RPR-2")
def test_a_closed_entry_is_forgotten_without_a_trace() -> None:
    """What it still had when it was closed by hand is not open, before and after a restart."""
    journal = told(missing(10, 24))
    journal.close_by_hand([1], "not needed", 2_000)
    journal = Journal(list(journal), journal.next_number)
    assert (journal.positions_missing, journal.claim("t", 0, 0, 99)) == (0, ())
    for n in range(ENTRIES_MAX):
        journal.happened(missing(n, n, U, epoch=n + 10), n)
    assert (len(journal), journal.forgotten, journal.take()[1]) == (ENTRIES_MAX, [], [1])


@pytest.mark.req("GC-RPR-2")
def test_it_is_bounded_and_forgets_closed_entries_first() -> None:
    journal = Journal()
    for n in range(ENTRIES_MAX):
        journal.happened(missing(10 * n, 10 * n, epoch=n + 1), n)
    journal.close_by_hand([7], "", 0)
    journal.take()
    journal.happened(missing(1, 1, epoch=ENTRIES_MAX + 1), 0)
    assert (len(journal), journal.forgotten) == (ENTRIES_MAX, [])
    assert journal.take()[1] == [7]
    journal.happened(missing(2, 2, epoch=ENTRIES_MAX + 2), 0)
    assert [(entry.number, entry.missing) for entry in journal.forgotten] == [(1, {T: RangeSet([(0, 0)])})]
    assert len(journal) == ENTRIES_MAX
    assert not journal.missing()[T].within(0, 0), "it is forgotten whole"


@pytest.mark.req("GC-RPR-2")
def test_an_entry_is_bounded_in_a_storm() -> None:
    journal = Journal()
    for n in range(3 * RANGES_MAX):
        journal.happened(lost(2 * n, 2 * n), 1_000)
        journal.happened(counted(1), 1_000)
        journal.happened(missing(20 * n, 20 * n + 9), 1_000)
    assert max(entry.ranges for entry in journal) <= RANGES_MAX + 2
    assert sum(entry.records for entry in journal) == 3 * RANGES_MAX
    assert {entry.cause for entry in journal} == {"gap"}
    assert journal.positions_missing == 30 * RANGES_MAX


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["missing", "repair", "lose repair", "gone", "close", "sink"]),
            st.integers(0, 50), st.integers(0, 9), st.sampled_from([T, U]),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_positions_are_open_in_one_entry_until_they_are_settled(
    steps: list[tuple[str, int, int, tuple[str, int]]],
) -> None:
    """Against a plain set of what is open."""
    journal, model = Journal(), set[tuple[tuple[str, int], int]]()
    for n, (step, first, more, place) in enumerate(steps):
        last, at_ms = first + more, n * GATHER_MS // 3
        these = {(place, position) for position in range(first, last + 1)}
        match step:
            case "missing":
                journal.happened(missing(first, last, place), at_ms)
                model |= these
            case "sink":
                journal.sink_lost(place, first, last, "rejected", at_ms)
                model |= these
            case "repair":
                journal.repaired({place: journal.claim(*place, first, last)}, at_ms)
                model -= these
            case "lose repair":
                claimed = {place: journal.claim(*place, first, last)}
                spans = (Span(*place, first, last, 1),)
                journal.refused(attrs.evolve(message(spans=spans), claimed=claimed), LossCause.REFUSED, at_ms)
            case "gone":
                journal.is_gone(Span(*place, first, last, 0, "deleted"), at_ms)
                model -= these
            case "close":
                numbers = [first % 7 + 1]
                model -= {
                    (p, position)
                    for entry in journal if entry.number in numbers
                    for p, ranges in entry.missing.items() for a, b in ranges for position in range(a, b + 1)
                }  # fmt: skip
                journal.close_by_hand(numbers, "", at_ms)
        found = [(p, x) for p, ranges in journal.missing().items() for a, b in ranges for x in range(a, b + 1)]
        assert sorted(found) == sorted(model)
        in_entries = [
            (p, x)
            for entry in journal if entry.open
            for p, ranges in entry.missing.items() for a, b in ranges for x in range(a, b + 1)
        ]  # fmt: skip
        assert sorted(in_entries) == sorted(model)
        assert all(entry.open == bool(entry.missing) for entry in journal if entry.outcome != "by_hand")


@pytest.mark.req("GC-DLV-34", "GC-ONCE-4")
@pytest.mark.parametrize("closed_by", ["the positions that were found", "hand"])
def test_that_a_message_came_late_is_noted_in_an_entry_that_is_closed_already(closed_by: str) -> None:
    journal = told(lost(5, 5), missing(10, 19))
    if closed_by == "hand":
        journal.close_by_hand([1], "sent by mail", 2_000)
    else:
        journal.found(T, [(10, 19)], 2_000)
    [entry] = journal
    outcome = entry.outcome
    journal.came_late(5, 5, 3_000)
    assert journal.has_come_late(5, 5)
    assert (entry.outcome, entry.closed_ms) == (outcome, 2_000)


@pytest.mark.req("GC-RPR-1", "GC-DLV-21")
def test_messages_of_which_nothing_is_known_have_an_entry_with_their_number() -> None:
    journal = Journal()
    journal.unidentified(2, 5, LossCause.DAMAGED, 1_000)
    journal.unidentified(1, 5, LossCause.DAMAGED, 1_000 + GATHER_MS)
    journal.unidentified(4, 0, LossCause.DAMAGED, 1_000)
    for event in (lost(3, 3), counted(10), missing(10, 19)):
        journal.happened(event, 1_000)
    journal.refused(message(8, runs=(Run("t", 0, 19, 20, 29, 10, 0, True, 0),)), LossCause.DAMAGED, 1_000)
    assert [(each.epoch, each.cause, each.messages_unidentified, each.records) for each in journal] == [
        (5, "damaged", 3, 0), (0, "damaged", 4, 0), (5, "gap", 0, 10), (5, "damaged", 0, 10)
    ]  # fmt: skip
    journal.came_late(5, 3, 2_000)
    journal.repaired({T: journal.claim("t", 0, 0, 99)}, 2_000)
    journal.accounted(5, 2_000)
    assert [each.number for each in journal.open_entries] == [1, 2], "nobody can say that these came"
    journal.close_by_hand([1, 2], "compared at the target", 3_000)
    journal.unidentified(1, 5, LossCause.DAMAGED, 3_000)
    assert [each.messages_unidentified for each in journal.open_entries] == [1], "a later loss is another entry"


def late(number: int, *, claimed: dict[tuple[str, int], tuple[tuple[int, int], ...]] | None = None) -> MessageDelivered:
    return attrs.evolve(message(number), late=True, claimed=claimed or {})


@pytest.mark.req("GC-RPR-9")
def test_a_message_is_not_wanted_while_it_is_on_its_way() -> None:
    journal = told(lost(3, 4), counted(20))
    assert journal.wants(5, 3)
    journal.comes(late(3))
    assert not journal.wants(5, 3)
    assert list(journal.messages_lost_in(5)) == [(4, 4)]
    journal.refused(late(3), LossCause.REFUSED, 2_000)
    assert journal.wants(5, 3), "it did not get there"
    journal.comes(late(3))
    journal.came(5, 3)
    journal.came_late(5, 3, 3_000)
    assert not journal.wants(5, 3)
    assert not journal.on_its_way().messages


@pytest.mark.req("GC-RPR-7", "GC-DLV-21")
def test_what_is_nowhere_any_more_is_missing_as_before_and_what_is_on_its_way_is_not() -> None:
    journal = told(lost(3, 4), counted(20), missing(10, 29))
    there = late(3, claimed={T: journal.claim("t", 0, 10, 19)})
    gone = late(4, claimed={T: journal.claim("t", 0, 20, 29)})
    journal.comes(there)
    journal.comes(gone)
    nowhere = journal.on_its_way()
    nowhere.leave_out(there)
    journal.let_go(nowhere)
    assert (journal.wants(5, 3), journal.wants(5, 4)) == (False, True)
    assert journal.claim("t", 0, 0, 99) == ((20, 29),)
    journal.repaired(there.claimed, 2_000)
    assert all_of(journal) == {T: [(20, 29)]}


@pytest.mark.req("GC-RPR-9")
def test_what_a_message_of_an_earlier_session_may_be_judged_by() -> None:
    """Only what that session missed, and what was not called gone: else records of it would never be delivered."""
    journal = told(lost(3, 4), counted(20), missing(10, 19))
    assert journal.knows(5, "t", 0, 15, 24)
    assert not journal.knows(5, "t", 0, 20, 24)
    assert not journal.knows(6, "t", 0, 10, 19), "another session"
    journal.sink_lost(T, 22, 22, "rejected", 2_000)
    assert not journal.knows(5, "t", 0, 20, 24), "what else was in that delivery may be lost with the process"
    journal.is_gone(Span("t", 0, 10, 19, 0, "deleted"), 3_000)
    assert not journal.knows(5, "t", 0, 10, 19), "it was not deleted after all"
    journal.happened(missing(30, 39), 3_000)
    journal.repaired({T: journal.claim("t", 0, 30, 39)}, 3_000)
    assert journal.knows(5, "t", 0, 30, 39)


@pytest.mark.req("GC-DLV-33", "GC-RPR-7")
def test_late_messages_close_no_entry_of_which_others_have_records_that_were_never_located() -> None:
    """Those at the end of a session that was cut off, behind which no later one said where they were."""
    journal = told(lost(3, 3), counted(10), missing(10, 19), lost(9, 9), counted(10))
    [entry] = journal

    def come(number: int, *positions: tuple[int, int]) -> None:
        journal.came_late(5, number, 2_000)
        journal.repaired({T: positions}, 2_000, late=True)

    come(3, *journal.claim("t", 0, 10, 19))
    assert entry.open
    assert journal.wants(5, 9)
    come(9)
    assert (entry.outcome, entry.reason) == ("repaired", "late")


def test_what_could_not_be_stored_is_taken_again() -> None:
    journal = told(lost(3, 3), counted(10))
    journal.happened(lost(1, 1, epoch=4), 1_000)
    journal.accounted(4, 1_000)
    assert [entry.number for entry in journal.open_entries] == [1]
    changed, removed = journal.take()
    journal.happened(missing(10, 19), 1_000)
    journal.give_back([entry.number for entry in changed], removed)
    again, removed_again = journal.take()
    assert ([entry.number for entry in again], removed_again) == ([1], removed)
    assert journal.take() == ([], [])
