"""The gap journal: what an egress misses, as entries that are opened, located, and closed (spec/repair.md).

Pure: it is told what happened and what time it is. `gapconn.store.journal` keeps it on disk.

    MessagesLost, RecordsLost ──▶ an entry ──▶ RecordsMissing: where ──▶ repaired, gone, or closed by hand

Positions are open in at most one entry, so what is open is a set of ranges for each stream partition, and closing them
needs no knowledge of entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from gapconn.protocol.envelope import Copy, Span
from gapconn.protocol.events import MessageDelivered, MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.registry import LossCause
from gapconn.ranges import Range, RangeSet

ENTRIES_MAX: Final = 1_000
"""Entries that a journal has at most."""
RANGES_MAX: Final = 100
"""Ranges of one entry, those of messages and those of each stream partition together; then another one is begun."""
GATHER_MS: Final = 10_000
"""Losses that follow each other within this time, in milliseconds, are one entry."""

Place: TypeAlias = tuple[str, int | None]
"""Stream and partition; without a partition, the positions are bytes of a stream or what else a sink counts by."""

NOT_KNOWN: Final = "not_known"
"""The cause of a loss of which only the positions are known."""


@attrs.define(kw_only=True)
class Entry:
    """One loss, or a series of them. Times are milliseconds since 1970, UTC."""

    number: int
    """Numbers rise and are not used again."""
    epoch: int
    cause: str
    """A loss cause of the registry, what a sink said, or `NOT_KNOWN`."""
    at_ms: int
    """When it began."""
    last_at_ms: int
    """When the last loss was added."""
    records: int = 0
    """Records lost, as counted by the sender; a restarted egress may count some a second time."""
    messages: RangeSet = attrs.field(factory=RangeSet)
    messages_unidentified: int = 0
    """Messages lost of which not even the numbers are known: they were in a damaged stretch of the spool. Such an entry
    has nothing else, and nothing but an operator closes it."""
    late: RangeSet = attrs.field(factory=RangeSet)
    """Of the messages, those that came late and reached the sink."""
    messages_gone: RangeSet = attrs.field(factory=RangeSet)
    """Of the messages, those that the source side has no more."""
    missing: dict[Place, RangeSet] = attrs.field(factory=dict)
    """Positions that are open; of an entry that was closed by hand, those that were."""
    repaired: dict[Place, RangeSet] = attrs.field(factory=dict)
    gone: dict[Place, RangeSet] = attrs.field(factory=dict)
    """Positions that the source has no more."""
    reason: str = ""
    """Why it was closed without a repair, or why some of it is gone."""
    closed_ms: int | None = None
    outcome: str = "open"
    """`open`, `repaired`, `unrecoverable` (some of it), or `by_hand`."""

    @property
    def open(self) -> bool:
        """Whether something is still missing."""
        return self.closed_ms is None

    @property
    def ranges(self) -> int:
        """How many ranges it has."""
        places = (*self.missing.values(), *self.repaired.values(), *self.gone.values())
        return len(self.messages) + len(self.late) + len(self.messages_gone) + sum(map(len, places))

    @property
    def located(self) -> int:
        """How many positions are known to have been lost; not every one need have held a record."""
        places = (*self.missing.values(), *self.repaired.values(), *self.gone.values())
        return sum(ranges.count for ranges in places)

    @property
    def messages_missing(self) -> RangeSet:
        """The messages that did not come late, and are not gone."""
        settled = RangeSet([*self.late, *self.messages_gone])
        return RangeSet(gap for each in self.messages for gap in settled.gaps(*each))


@attrs.define
class OnItsWay:
    """What was lost, came again, and is on its way to the sink: until it is there, it is missing."""

    positions: dict[Place, RangeSet] = attrs.field(factory=dict)
    messages: dict[int, RangeSet] = attrs.field(factory=dict)
    """By session."""

    def leave_out(self, message: MessageDelivered) -> None:
        """Not what this message has."""
        for place, ranges in message.claimed.items():
            if place in self.positions:
                for first, last in ranges:
                    self.positions[place].remove(first, last)
        if message.late and message.epoch in self.messages:
            self.messages[message.epoch].remove(message.number, message.number)


class Journal:
    """What an egress misses. Everything changes in memory at once; `take` says what is to be stored.

    Args:
        entries: As they were stored.
        next_number: Above the number of every entry that there ever was.
    """

    def __init__(self, entries: Iterable[Entry] = (), next_number: int = 1) -> None:
        self._entries: dict[int, Entry] = {}
        self._next_number = next_number
        self._open: dict[Place, RangeSet] = {}
        self._claimed: dict[Place, RangeSet] = {}
        """Open, and on the way to the sink."""
        self._coming: dict[int, RangeSet] = {}
        """Lost messages that came late and are on the way to the sink, by session."""
        self._messages: dict[int, RangeSet] = {}
        """Lost messages by session."""
        self._changed: dict[int, None] = {}
        self._removed: list[int] = []
        self._unproven: dict[int, None] = {}
        """Entries of lost messages of which it is not known whether they had records."""
        self.forgotten: list[Entry] = []
        """Open entries that had to be forgotten; whoever reports them takes them out."""
        self.closed: list[Entry] = []
        """Entries closed since somebody looked; whoever reports them takes them out."""
        for entry in sorted(entries, key=lambda each: each.number):
            self._entries[entry.number] = entry
            self._next_number = max(self._next_number, entry.number + 1)
            for first, last in entry.messages:
                self._messages.setdefault(entry.epoch, RangeSet()).add(first, last)
            for place, ranges in entry.missing.items() if entry.open else ():
                for first, last in ranges:
                    self._open.setdefault(place, RangeSet()).add(first, last)

    # -- what can be asked -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        """All entries, the oldest first."""
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def next_number(self) -> int:
        """Number of the next entry."""
        return self._next_number

    @property
    def open_entries(self) -> list[Entry]:
        """The entries of which something is missing, the oldest first."""
        return [entry for entry in self if entry.open]

    @property
    def positions_missing(self) -> int:
        """Positions that are open; not every one need have held a record."""
        return sum(ranges.count for ranges in self._open.values())

    def missing(self) -> dict[Place, RangeSet]:
        """All open positions."""
        return self._open

    def is_lost(self, epoch: int, number: int) -> bool:
        """Whether this message was reported as lost."""
        of_session = self._messages.get(epoch)
        return of_session is not None and bool(of_session.within(number, number))

    def messages_lost_in(self, epoch: int) -> RangeSet:
        """Messages of this session that are lost, and of which something is open: they mend it when they come late.

        Without those that came and are on their way to the sink.
        """
        lost = [each for entry in self.open_entries if entry.epoch == epoch for each in entry.messages_missing]
        coming = self._coming.get(epoch, RangeSet())
        return RangeSet(gap for each in lost for gap in coming.gaps(*each))

    def joined_at(self, epoch: int) -> int:
        """The message with which the egress joined this session without stored state; 0 if it did not."""
        lasts = [
            last for entry in self if (entry.epoch, entry.cause) == (epoch, _BEFORE_JOIN) for _, last in entry.messages
        ]
        return max(lasts, default=-1) + 1

    # -- losses ----------------------------------------------------------------------------------------------

    def happened(self, event: MessagesLost | RecordsLost | RecordsMissing, now_ms: int) -> None:
        """Take in a loss that the receiving half reports."""
        match event:
            case MessagesLost():
                self._messages_lost(event, now_ms)
            case RecordsLost():
                entry = self._newest(event.epoch) or self._begin(event.epoch, _name(event.cause), now_ms)
                entry.records += event.count
                self._unproven.pop(entry.number, None)
                self._reopen(entry)
                self._change(entry)
            case RecordsMissing():
                self._locate(
                    event.epoch, NOT_KNOWN, {(event.stream, event.partition): (event.first, event.last)}, now_ms
                )

    def _messages_lost(self, event: MessagesLost, now_ms: int) -> None:
        cause = _name(event.cause)
        for first, last in self._messages.setdefault(event.epoch, RangeSet()).add(event.first, event.last):
            entry = self._newest(event.epoch)
            if entry is None or entry.cause != cause or not self._room(entry, now_ms):
                entry = self._begin(event.epoch, cause, now_ms)
            entry.messages.add(first, last)
            entry.last_at_ms = now_ms
            self._reopen(entry)
            if not entry.records and not entry.missing:
                self._unproven[entry.number] = None
            self._change(entry)

    def accounted(self, epoch: int, now_ms: int) -> None:
        """All records that were lost in this session so far have been told: a message without any is no loss."""
        for number in [n for n in self._unproven if self._entries[n].epoch == epoch]:
            del self._unproven[number]
            entry = self._entries[number]
            if entry.late:  # what had records came late
                entry.reason = LATE
                self._close(entry, "repaired", now_ms)
            else:
                self._remove(number)

    @property
    def unaccounted(self) -> bool:
        """Whether `accounted` would have anything to do."""
        return bool(self._unproven)

    def refused(self, message: MessageDelivered, cause: LossCause, now_ms: int) -> None:
        """A message arrived and is not handed to the sink."""
        self.release(message)
        if message.spans:
            return  # its records are open as before
        located = [
            ((run.stream, run.partition), (max(run.first, already + 1), run.last))
            for run in message.runs  # a partition may have several
            if run.last > (already := message.already_delivered.get((run.stream, run.partition), -1))
        ]
        if message.late and not located:
            return  # the message and its records are open as before
        entry = self._newest(message.epoch)
        if entry is None or entry.cause != _name(cause) or not self._room(entry, now_ms):
            entry = self._begin(message.epoch, _name(cause), now_ms)
        entry.messages.add(message.number, message.number)
        self._messages.setdefault(message.epoch, RangeSet()).add(message.number, message.number)
        entry.records += message.record_count
        entry.last_at_ms = now_ms
        self._change(entry)
        for place, positions in located:
            self._locate(message.epoch, _name(cause), {place: positions}, now_ms)

    def unidentified(self, count: int, epoch: int, cause: LossCause, now_ms: int) -> None:
        """So many messages are lost, of this session (0: not known), and it is not known which ones."""
        of_kind = (each for each in reversed(self._entries.values()) if each.messages_unidentified)
        entry = next((each for each in of_kind if (each.epoch, each.cause) == (epoch, _name(cause))), None)
        if entry is None or not self._room(entry, now_ms):
            entry = self._begin(epoch, _name(cause), now_ms)
        entry.messages_unidentified += count
        entry.last_at_ms = now_ms
        self._change(entry)

    def sink_lost(self, place: Place, first: int, last: int, reason: str, now_ms: int) -> None:
        """The sink says that it cannot deliver these."""
        self._repair_failed(place, first, last)
        self._locate(0, reason, {place: (first, last)}, now_ms)

    def _repair_failed(self, place: Place, first: int, last: int) -> None:
        """What was open before stays open, also when the message with it is accepted."""
        if place in self._claimed:
            self._claimed[place].remove(first, last)

    def _locate(self, epoch: int, cause: str, places: Mapping[Place, Range], now_ms: int) -> None:
        """Open these positions, in the entry to which they most likely belong."""
        for place, (first, last) in places.items():
            for new_first, new_last in self._open.setdefault(place, RangeSet()).add(first, last):
                entry = self._entry_to_locate(epoch, cause, place, (new_first, new_last), now_ms)
                entry.missing.setdefault(place, RangeSet()).add(new_first, new_last)
                entry.last_at_ms = now_ms
                self._unproven.pop(entry.number, None)
                self._reopen(entry)
                self._change(entry)

    def _entry_to_locate(self, epoch: int, cause: str, place: Place, new: Range, now_ms: int) -> Entry:
        newest = self._newest(epoch)
        if newest is not None and newest.cause != _BEFORE_JOIN and cause in (NOT_KNOWN, newest.cause):
            if self._room(newest, now_ms, or_touching=(place, new)) or _to_be_located(newest):
                return newest
            if now_ms - newest.last_at_ms <= GATHER_MS:
                cause = newest.cause  # it is full
        if cause == NOT_KNOWN:
            # Lost in a session that ended before it could be said where.
            earlier = (each for each in reversed(self._entries.values()) if each.epoch != epoch)
            found = next((each for each in earlier if each.cause != _BEFORE_JOIN and _to_be_located(each)), None)
            if found is not None:
                return found
        return self._begin(epoch, cause, now_ms)

    def _newest(self, epoch: int) -> Entry | None:
        """The newest entry of this session to which something can be added."""
        of_session = (entry for entry in reversed(self._entries.values()) if entry.epoch == epoch)
        return next((entry for entry in of_session if not entry.messages_unidentified), None)

    def _room(self, entry: Entry, now_ms: int, or_touching: tuple[Place, Range] | None = None) -> bool:
        """Whether what happens now is part of this entry."""
        if entry.outcome == "by_hand":
            return False
        if or_touching is not None:
            place, (first, last) = or_touching
            ranges = entry.missing.get(place)
            if ranges is not None and ranges.within(first - 1, last + 1):
                return True
        return entry.ranges < RANGES_MAX and abs(now_ms - entry.last_at_ms) <= GATHER_MS

    def _begin(self, epoch: int, cause: str, now_ms: int) -> Entry:
        entry = Entry(number=self._next_number, epoch=epoch, cause=cause, at_ms=now_ms, last_at_ms=now_ms)
        self._next_number += 1
        self._entries[entry.number] = entry
        self._change(entry)
        while len(self._entries) > ENTRIES_MAX:
            oldest = next((each for each in self if not each.open), next(iter(self)))
            if oldest.open:
                self.forgotten.append(oldest)
            self._remove(oldest.number)
        return entry

    def _reopen(self, entry: Entry) -> None:
        if not entry.open:
            entry.closed_ms, entry.outcome = None, "open"

    # -- repairs ---------------------------------------------------------------------------------------------

    def claim(self, stream: str, partition: int, first: int, last: int) -> tuple[Range, ...]:
        """What is missing of these, and not on its way to the sink: the caller is to deliver it."""
        place = (stream, partition)
        ranges = self._open.get(place)
        if ranges is None:
            return ()
        claimed = self._claimed.setdefault(place, RangeSet())
        new = [part for each in ranges.within(first, last) for part in claimed.gaps(*each)]
        for part in new:
            claimed.add(*part)
        return tuple(new)

    def comes(self, message: MessageDelivered) -> None:
        """This message is on its way to the sink, with what it claimed: no other one is to bring the same."""
        for (stream, partition), ranges in message.claimed.items():
            for first, last in ranges:
                self.claim(stream, partition, first, last)
        if message.late:
            self._coming.setdefault(message.epoch, RangeSet()).add(message.number, message.number)

    def on_its_way(self) -> OnItsWay:
        """All that was claimed, or came late, and has come to no end yet; the caller's own copy."""
        return OnItsWay(
            {place: RangeSet(ranges) for place, ranges in self._claimed.items()},
            {epoch: RangeSet(numbers) for epoch, numbers in self._coming.items()},
        )

    def release_claims(self) -> None:
        """Whatever is open may be claimed anew: whoever calls this says then what is on its way."""
        self._claimed.clear()

    def release(self, message: MessageDelivered) -> None:
        """This message is not delivered: what it was to bring is missing as before."""
        for place, ranges in message.claimed.items():
            for first, last in ranges:
                self._unclaim(place, first, last)
        if message.late:
            self.came(message.epoch, message.number)

    def let_go(self, nowhere: OnItsWay) -> None:
        """These are on their way no more: they are missing as before."""
        for place, ranges in nowhere.positions.items():
            for first, last in ranges:
                self._unclaim(place, first, last)
        for epoch, numbers in nowhere.messages.items():
            for first, last in numbers:
                self._coming_ended(epoch, first, last)

    def came(self, epoch: int, number: int) -> None:
        """This message is not on its way any more."""
        self._coming_ended(epoch, number, number)

    def _coming_ended(self, epoch: int, first: int, last: int) -> None:
        coming = self._coming.get(epoch)
        if coming is not None:
            coming.remove(first, last)
            if not coming:
                del self._coming[epoch]

    def _unclaim(self, place: Place, first: int, last: int) -> None:
        if place in self._claimed:
            self._claimed[place].remove(first, last)

    def repaired(
        self, claimed: Mapping[tuple[str, int], tuple[Range, ...]], now_ms: int, *, late: bool = False
    ) -> None:
        """The sink has accepted what was claimed, of a repair or of a late message."""
        for place, ranges in claimed.items():
            claims = self._claimed.get(place, RangeSet())
            # What the sink has given up meanwhile is claimed no more.
            settled = [part for each in ranges for part in claims.remove(*each)]
            self._settle(place, settled, now_ms, reason=LATE if late else "")
            if not claims:
                self._claimed.pop(place, None)

    def came_late(self, epoch: int, number: int, now_ms: int) -> None:
        """The sink has accepted this message, which was lost before (GC-DLV-34).

        An entry that knows of no positions is closed with the last of its messages. One that is closed already notes it
        too: it may be asked whether the message came (`has_come_late`).
        """
        if not self.is_lost(epoch, number):
            return
        for entry in [each for each in self if each.epoch == epoch]:
            if not entry.messages.within(number, number):
                continue
            entry.late.add(number, number)
            self._change(entry)
            if entry.open and not entry.missing and not entry.messages_missing:
                entry.reason = entry.reason if entry.messages_gone else LATE
                self._unproven.pop(entry.number, None)
                self._close(entry, "unrecoverable" if entry.gone or entry.messages_gone else "repaired", now_ms)

    def is_gone_of(self, copy: Copy, now_ms: int) -> None:
        """The source side has these messages no more (GC-RPR-10)."""
        for entry in [each for each in self.open_entries if each.epoch == copy.epoch]:
            gone = [part for each in entry.messages.within(copy.first, copy.last) for part in entry.late.gaps(*each)]
            for part in gone:
                entry.messages_gone.add(*part)
            if gone:
                entry.reason = copy.gone
                self._change(entry)
        self.settle_gone(copy.epoch, now_ms)

    def settle_gone(self, epoch: int, now_ms: int) -> None:
        """Close the entries of which all messages came late or are gone: the positions left were in those."""
        for entry in [each for each in self.open_entries if each.epoch == epoch]:
            if not entry.messages_gone or entry.messages_missing:
                continue
            for place, ranges in list(entry.missing.items()):
                self._settle(place, list(ranges), now_ms, gone=entry.reason)
            if entry.open:
                self._unproven.pop(entry.number, None)
                self._close(entry, "unrecoverable", now_ms)

    def wants(self, epoch: int, number: int) -> bool:
        """Whether this message is lost, was neither mended nor given up since, and is not on its way to the sink."""
        return bool(self.messages_lost_in(epoch).within(number, number))

    def knows(self, epoch: int, stream: str, partition: int, first: int, last: int) -> bool:
        """Whether it was said of positions between these, in this session, that they are missing, or were: then the
        others between them were delivered.

        That does not follow from what another session misses, nor from what the sink lost of some delivery (which has
        no session here). And what was called gone was not delivered.
        """
        return any(
            ranges.within(first, last)
            for entry in self
            if entry.epoch == epoch
            for places in (entry.missing, entry.repaired)
            if (ranges := places.get((stream, partition))) is not None
        )

    def has_come_late(self, epoch: int, number: int) -> bool:
        """Whether this message was lost and then reached the sink."""
        return any(entry.late.within(number, number) for entry in self if entry.epoch == epoch)

    def found(self, place: Place, ranges: Iterable[Range], now_ms: int) -> None:
        """The target has these after all, as the sink says."""
        self._settle(place, list(ranges), now_ms, reason=LATE)

    def is_gone(self, span: Span, now_ms: int) -> None:
        """The source has these no more."""
        self._settle((span.stream, span.partition), [(span.first, span.last)], now_ms, gone=span.gone)

    def close_by_hand(self, numbers: Iterable[int], reason: str, now_ms: int) -> list[int]:
        """Somebody says that these entries are of no interest any more; the numbers of those that were open."""
        closed = []
        for number in numbers:
            entry = self._entries.get(number)
            if entry is None or not entry.open:
                continue
            for place, ranges in entry.missing.items():
                for first, last in ranges:
                    self._open[place].remove(first, last)
                    self._unclaim(place, first, last)
                if not self._open[place]:
                    del self._open[place]
            entry.reason = reason
            self._close(entry, "by_hand", now_ms)
            closed.append(number)
        return closed

    def _settle(self, place: Place, ranges: Sequence[Range], now_ms: int, *, gone: str = "", reason: str = "") -> None:
        """These are missing no more."""
        of_place = self._open.get(place)
        if of_place is None or not ranges:
            return
        settled = [part for each in ranges for part in of_place.remove(*each)]
        if not of_place:
            del self._open[place]
        if not settled:
            return
        low, high = min(first for first, _ in settled), max(last for _, last in settled)
        for entry in self.open_entries:
            of_entry = entry.missing.get(place)
            if of_entry is None or not of_entry.meets(low, high):
                continue
            found = [part for each in settled for part in of_entry.remove(*each)]
            if not found:
                continue
            if not of_entry:
                del entry.missing[place]
            done = (entry.gone if gone else entry.repaired).setdefault(place, RangeSet())
            for part in found:
                done.add(*part)
            entry.reason = gone or (not entry.messages_gone and reason) or entry.reason
            # Of messages at the end of a session it may never have been said where their records stood.
            some_nowhere = reason == LATE and entry.located < entry.records and bool(entry.messages_missing)
            if not entry.missing and not some_nowhere:
                self._close(entry, "unrecoverable" if entry.gone or entry.messages_gone else "repaired", now_ms)
            self._change(entry)

    def _close(self, entry: Entry, outcome: str, now_ms: int) -> None:
        entry.closed_ms, entry.outcome = now_ms, outcome
        self.closed.append(entry)
        self._change(entry)

    # -- storing ---------------------------------------------------------------------------------------------

    def take(self) -> tuple[list[Entry], list[int]]:
        """Entries that changed, and numbers of entries that are no more, since the last call.

        The entries are those of the journal: encode them before anything else happens.
        """
        changed = [self._entries[number] for number in self._changed if number in self._entries]
        self._changed = {}
        removed, self._removed = self._removed, []
        return changed, removed

    def give_back(self, changed: Iterable[int], removed: Iterable[int]) -> None:
        """What `take` said could not be stored: it says it again."""
        self._changed = {**dict.fromkeys(changed), **self._changed}
        self._removed = [*removed, *self._removed]

    def _change(self, entry: Entry) -> None:
        self._changed[entry.number] = None

    def _remove(self, number: int) -> None:
        entry = self._entries.pop(number)
        for first, last in entry.messages:
            self._messages[entry.epoch].remove(first, last)
        if entry.messages and not self._messages[entry.epoch]:
            del self._messages[entry.epoch]
        self._changed.pop(number, None)
        self._unproven.pop(number, None)
        self._removed.append(number)
        for place, ranges in entry.missing.items() if entry.open else ():
            for first, last in ranges:
                self._open[place].remove(first, last)
                self._unclaim(place, first, last)
            if not self._open[place]:
                del self._open[place]


LATE: Final = "late"
"""The reason of an entry of which the last was mended by messages that were repeated."""
_BEFORE_JOIN: Final = LossCause.BEFORE_JOIN.name.lower()
"""Where these records stood can never be said."""


def _to_be_located(entry: Entry) -> bool:
    """Whether messages were lost, and it was not said yet which positions were in them."""
    return entry.open and bool(entry.messages) and not (entry.missing or entry.repaired or entry.gone)


def _name(cause: LossCause) -> str:
    return cause.name.lower()
