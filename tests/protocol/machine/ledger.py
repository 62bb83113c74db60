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
    MessagesLost,
    RecordsLost,
    RecordsMissing,
    SessionCutOff,
    SessionEnded,
    SessionFollowed,
    UnverifiedCleared,
    UnverifiedDetected,
)
from gapconn.protocol.receiver import Progress
from tests.protocol.machine.oracle import POSITIONS, PlainRun, SenderOracle, StreamPartition

Accepted: TypeAlias = set[tuple[int, int]]
"""(epoch, number) of messages."""


@attrs.define
class Chain:
    """The records of one stream partition since their chain began."""

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
        reach: Called with the name of each noteworthy thing that happens.
    """

    def __init__(
        self,
        *,
        sessions: Mapping[int, SenderOracle],
        logs: Mapping[StreamPartition, list[int]],
        accepted: Accepted,
        saved: Progress | None,
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
        self._current = 0
        self._next: dict[int, int] = {}
        # The records of messages whose loss was stored before they were counted.
        self._lost_since_delivery = {"GAP"} if saved is not None else set()
        self._chains: dict[StreamPartition, Chain] = {}
        self._missing_before_next: dict[StreamPartition, set[int]] = {}
        """Reported, and to be entered with the message that showed it."""
        if saved is not None:
            self._next[saved.epoch] = saved.next_message
            self.records[saved.epoch] = saved.next_record
            for key, (_, _, last) in saved.positions.items():
                self._chains[key] = Chain(after=last, last=last)

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
            case MessagesLost():
                assert event.epoch == self._current, "GC-DLV-10"
                assert event.last >= event.first == self._next_of(event.epoch), "GC-MOD-4"
                self._next[event.epoch] = event.last + 1
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
        del self.with_sink[:count]

    def _enter_delivered(self, event: MessageDelivered, chains_begun: Mapping[tuple[int, int, int], int]) -> None:
        epoch, number = event.epoch, event.number
        assert epoch == self._current, "GC-MOD-1"
        assert number == self._next_of(epoch), "GC-MOD-2"
        assert (epoch, number) not in self.accepted, "delivered again by an egress that kept its state"
        self._next[epoch] = number + 1
        sent = self._sessions[epoch].messages[number]
        assert (event.first_record, event.record_count) == (sent.first_record, sent.record_count), "GC-MOD-1"
        assert tuple(map(plain_run, event.runs)) == sent.runs, "GC-MOD-1"
        assert bytes(event.body) == sent.body, "GC-MOD-1"
        self.records[epoch] += event.record_count
        self.delivered[epoch] += 1
        self._lost_since_delivery.clear()
        self.with_sink.append((epoch, number, self.tracker.expect(event)))
        for place, run in enumerate(event.runs):
            already = event.already_delivered.get((run.stream, run.partition), -1)
            self._enter_run(run, already, owed_after=chains_begun.get((epoch, number, place)))
        assert not self._missing_before_next, "GC-DLV-14"
        if event.already_delivered:
            self._reach("sent again")
        if sent.kind == POSITIONS:
            self._reach("summary delivered")
        if len(sent.body) > 30_000:
            self._reach("delivered in several blocks")

    def _enter_run(self, run: Run, already: int, *, owed_after: int | None) -> None:
        key = (run.stream, run.partition)
        if owed_after is not None:
            self._check_located(key)
            self._chains[key] = Chain(after=owed_after, last=owed_after)
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
