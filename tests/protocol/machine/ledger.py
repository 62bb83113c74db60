"""The promises of spec/model.md, checked against what was really sent, without any model of how a receiver works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from gapconn.progress import ProgressTracker
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import (
    ConflictCleared,
    ConflictDetected,
    Event,
    ForeignLinkDetected,
    LinkInterrupted,
    LinkRestored,
    MessageDelivered,
    MessageSettled,
    MessagesLost,
    RecordsLost,
    RecordsMissing,
    SessionCutOff,
    SessionEnded,
    SessionFollowed,
    UnverifiedCleared,
    UnverifiedDetected,
)
from gapconn.protocol.progress import Progress
from gapconn.ranges import RangeSet
from tests.protocol.machine.oracle import POSITIONS, PlainRun, SenderOracle, StreamPartition

Accepted: TypeAlias = set[tuple[int, int]]
"""(epoch, number) of messages."""


@attrs.define
class Losses:
    """The journal of an egress, as far as it matters here: it is stored at once, and survives a restart."""

    lost: dict[int, set[int]] = attrs.field(factory=dict)
    """By epoch: messages that were reported, and were not accepted late since."""
    joined_at: dict[int, int] = attrs.field(factory=dict)

    def known_to(self, saved: Progress) -> Progress:
        """What an egress that resumes is told of the session."""
        lost = RangeSet((n, n) for n in self.lost.get(saved.epoch, ()) if n < saved.next_message)
        return attrs.evolve(saved, lost=tuple(lost), joined_at=self.joined_at.get(saved.epoch, 0))


@attrs.define
class Chain:
    """The records of one stream partition since their chain began."""

    number: int
    """The message with which it began."""
    after: int
    """Positions at or before it are not of this chain."""
    last: int
    """So far the chain was told."""
    arrived: set[int] = attrs.field(factory=set)
    missing: set[int] = attrs.field(factory=set)


class Ledger:
    """One life of an egress: what it said, entry by entry, and its sink.

    Args:
        sessions: All sessions that ever were, by epoch.
        logs: The positions that each stream partition has at its source.
        accepted: What the sink accepted in the lives before whose stored state this one has.
        saved: That stored state.
        journal: What is stored of losses.
        reach: Called with the name of each noteworthy thing that happens.
    """

    def __init__(
        self,
        *,
        sessions: Mapping[int, SenderOracle],
        logs: Mapping[StreamPartition, list[int]],
        accepted: Accepted,
        saved: Progress | None,
        journal: Losses,
        reach: Callable[[str], None],
    ) -> None:
        self.accepted = accepted
        self.with_sink: list[tuple[int, int, Callable[[], None]]] = []
        """Messages that the sink was given and has not accepted: epoch, number, and how to accept."""
        self.tracker = ProgressTracker(saved)
        self.delivered: Counter[int] = Counter()
        """Messages, by epoch."""
        self.records: Counter[int] = Counter()
        """Records delivered or reported lost, in this life and as stored, by epoch."""
        self._sessions = sessions
        self._logs = logs
        self._reach = reach
        self._journal = journal
        self._delivered: set[tuple[int, int]] = set()
        self._ahead: dict[tuple[int, int], tuple[list[Run], int, Mapping[StreamPartition, int] | None]] = {}
        """By epoch and number, of messages that were delivered before earlier ones: runs, records, and what was
        delivered before; None if an earlier life has delivered them."""
        self._current = 0
        self._next: dict[int, int] = {}
        # The records of messages whose loss was stored before they were counted.
        self._lost_since_delivery = {"GAP"} if saved is not None else set()
        self._chains: dict[StreamPartition, Chain] = {}
        self._missing_before_next: dict[StreamPartition, set[int]] = {}
        """Reported, and to be entered with the message that showed it."""
        if saved is not None:
            self._next[saved.epoch] = saved.next_message
            for each in saved.ahead:
                self._ahead[saved.epoch, each.number] = (list(each.runs), each.record_count, None)
                self._delivered.add((saved.epoch, each.number))
            self.records[saved.epoch] = saved.next_record
            for key, (_, number, last) in saved.positions.items():
                self._chains[key] = Chain(number=number, after=last, last=last)

    def enter(self, event: Event, chains_begun: Mapping[tuple[int, int, int], int]) -> None:
        """Check one event.

        Args:
            event: The event.
            chains_begun: By (epoch, number, place in the message), for the runs that do not continue what was delivered
                before: the position behind which everything is owed.
        """
        self.tracker.happened(event)
        match event:
            case SessionFollowed():
                assert event.epoch > self._current, "GC-SESS-5"
                self._current = event.epoch
                self._reach(f"followed {event.reason.name}")
            case MessageDelivered():
                self._enter_delivered(event, chains_begun)
            case MessageSettled():
                self._enter_settled(event, chains_begun)
            case MessagesLost():
                assert event.epoch == self._current, "GC-DLV-10"
                assert event.last >= event.first == self._next_of(event.epoch), "GC-MOD-4"
                numbers = {(event.epoch, number) for number in range(event.first, event.last + 1)}
                assert not numbers & self._delivered, "GC-MOD-4: it was delivered"
                self._next[event.epoch] = event.last + 1
                self._journal.lost.setdefault(event.epoch, set()).update(range(event.first, event.last + 1))
                if event.cause.name == "BEFORE_JOIN":
                    self._journal.joined_at[event.epoch] = event.last + 1
                self._lost_since_delivery.add(event.cause.name)
                self._reach(f"lost {event.cause.name}")
            case RecordsLost():
                assert event.epoch == self._current, "GC-DLV-13"
                assert event.cause.name in self._lost_since_delivery, "GC-DLV-13"
                self.records[event.epoch] += event.count
                self._reach("records lost")
            case RecordsMissing():
                missing = self._missing_before_next.setdefault((event.stream, event.partition), set())
                missing |= set(range(event.first, event.last + 1))
                self._reach("records missing")
            case LinkInterrupted():
                assert event.silent_s > 0, "GC-SESS-13"
                self._reach("interrupted")
            case (
                ForeignLinkDetected()
                | LinkRestored()
                | SessionEnded()
                | SessionCutOff()
                | ConflictDetected()
                | ConflictCleared()
                | UnverifiedDetected()
                | UnverifiedCleared()
            ):
                self._reach(type(event).__name__)

    def check_located(self) -> None:
        """In each chain, every record that was sent arrived or is in a reported range, and never both (GC-DLV-14)."""
        for key in self._chains:
            self._check_located(key)

    def accept(self, count: int) -> None:
        """The sink accepts the oldest messages that it was given."""
        for epoch, number, accept in self.with_sink[:count]:
            accept()
            self.accepted.add((epoch, number))
            self._journal.lost.get(epoch, set()).discard(number)
        del self.with_sink[:count]

    def _enter_delivered(self, event: MessageDelivered, chains_begun: Mapping[tuple[int, int, int], int]) -> None:
        self._enter_number(event)
        if event.ahead:
            self.with_sink.append((event.epoch, event.number, self.tracker.expect(event)))
            self._ahead[event.epoch, event.number] = (event.runs, event.record_count, event.already_delivered)
            self._reach("delivered ahead")  # what is known of its records is told when it has its turn
        else:
            self._enter_in_turn(event, chains_begun)

    def _enter_number(self, event: MessageDelivered) -> None:
        epoch, number = event.epoch, event.number
        assert epoch == self._current, "GC-MOD-1"
        if event.late:
            assert number in self._journal.lost.get(epoch, ()), "GC-DLV-31"
            assert number < self._next_of(epoch), "GC-DLV-31"
        elif event.ahead:
            assert number > self._next_of(epoch), "GC-DLV-35"
        else:
            assert number == self._next_of(epoch), "GC-MOD-2"
            self._next[epoch] = number + 1
        assert (epoch, number) not in self._delivered | self.accepted, "GC-MOD-2, by an egress that kept its state"
        self._delivered.add((epoch, number))
        sent = self._sessions[epoch].messages[number]
        assert (event.first_record, event.record_count) == (sent.first_record, sent.record_count), "GC-MOD-1"
        assert tuple(map(plain_run, event.runs)) == sent.runs, "GC-MOD-1"
        assert bytes(event.body) == sent.body, "GC-MOD-1"
        if sent.kind == POSITIONS:
            self._reach("summary delivered")
        if len(sent.body) > 30_000:
            self._reach("delivered in several blocks")

    def _enter_in_turn(self, event: MessageDelivered, chains_begun: Mapping[tuple[int, int, int], int]) -> None:
        epoch, number = event.epoch, event.number
        if event.late:
            # Those that were counted as lost already are not counted again.
            self.records[epoch] = max(self.records[epoch], event.first_record + event.record_count)
            self._reach("delivered late")
        else:
            self.records[epoch] += event.record_count
            self.delivered[epoch] += 1
            self._lost_since_delivery.clear()
        self.with_sink.append((epoch, number, self.tracker.expect(event)))
        for place, run in enumerate(event.runs):
            already = event.already_delivered.get((run.stream, run.partition), -1)
            owed_after = chains_begun.get((epoch, number, place))
            if event.late and number < self._journal.joined_at.get(epoch, 0) and self._passed(run):
                self._reach("came late from before the egress joined")
                continue  # nothing was told of its records
            if event.late and (run.stream, run.partition) not in event.positions:
                self._reach("came late where it is not known how far was delivered")
                continue
            if event.late:
                self._enter_found(run, already)
            if not event.late or run.last > already:
                self._enter_run(run, already, owed_after=owed_after)
        assert not self._missing_before_next, "GC-DLV-14"
        if event.already_delivered:
            self._reach("sent again")

    def _enter_settled(self, event: MessageSettled, chains_begun: Mapping[tuple[int, int, int], int]) -> None:
        epoch, number = event.epoch, event.number
        assert number == self._next_of(epoch), "GC-DLV-35"
        self._next[epoch] = number + 1
        runs, record_count, already = self._ahead.pop((epoch, number))
        self.records[epoch] += record_count
        self.delivered[epoch] += 1
        self._lost_since_delivery.clear()
        for place, run in enumerate(runs):
            key = (run.stream, run.partition)
            owed_after = chains_begun.get((epoch, number, place))
            if already is not None:
                before = already.get(key, -1)
            else:
                before = self._chains[key].last if key in self._chains and owed_after is None else -1
            self._enter_run(run, before, owed_after=owed_after)
        assert not self._missing_before_next, "GC-DLV-14"
        self._reach("settled after it was delivered")

    def _enter_run(self, run: Run, already: int, *, owed_after: int | None) -> None:
        key = (run.stream, run.partition)
        if owed_after is not None:
            self._check_located(key)
            self._chains[key] = Chain(number=run.chain, after=owed_after, last=owed_after)
        chain = self._chains.get(key)
        assert chain is not None, "GC-DLV-14"
        missing = self._missing_before_next.pop(key, set())
        assert not missing & chain.arrived, "GC-DLV-14"
        chain.missing |= missing
        fresh = {p for p in self._logs[key] if max(already, run.first - 1) < p <= run.last} if run.count else set()
        assert not chain.arrived & fresh, "a record was delivered twice (GC-DLV-15)"
        assert not fresh or min(fresh) > chain.last, "a record was delivered out of order"
        chain.arrived |= fresh
        chain.last = max(chain.last, run.last)

    def _passed(self, run: Run) -> bool:
        """Whether later records of its stream partition have been delivered in the session."""
        chain = self._chains.get((run.stream, run.partition))
        return chain is not None and (run.chain, run.last) <= (chain.number, chain.last)

    def _enter_found(self, run: Run, judged: int) -> None:
        """Of a late message, the records whose positions were reported as missing (GC-DLV-33)."""
        key = (run.stream, run.partition)
        chain = self._chains.get(key)
        if chain is None or chain.number != run.chain:
            return  # of those nothing was told here
        found = {p for p in self._logs[key] if run.first <= p <= min(run.last, judged)} & chain.missing
        assert not chain.arrived & found, "GC-DLV-33"
        chain.missing -= found
        chain.arrived |= found
        if found:
            self._reach("found late")

    def _check_located(self, key: StreamPartition) -> None:
        chain = self._chains.get(key)
        if chain is not None:
            sent = {p for p in self._logs.get(key, ()) if chain.after < p <= chain.last}
            assert chain.arrived <= sent
            assert sent - chain.missing == chain.arrived, "GC-DLV-14"

    def _next_of(self, epoch: int) -> int:
        return self._next.get(epoch, 0)


def plain_run(run: Run) -> PlainRun:
    """A run as the oracle has it."""
    head = (run.stream, run.partition, run.previous, run.first, run.last, run.count)
    return (*head, run.begun, run.continues, run.chain)
