"""Symbols become messages again, in order, in bounded memory and time (spec/delivery.md)."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable

import attrs
import numpy as np
from numpy.typing import NDArray

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.envelope import Message, Run, open_message
from gapconn.protocol.fec import Codec, rebuild
from gapconn.protocol.registry import LOST_RANGES_MAX, MESSAGES_HELD_MAX, DropReason, LossCause
from gapconn.protocol.wire import Header
from gapconn.ranges import Range, RangeSet


@attrs.frozen(kw_only=True)
class Ahead:
    """What has to be remembered of a message that was delivered ahead of earlier ones, until it is settled."""

    number: int
    first_record: int
    record_count: int
    runs: tuple[Run, ...]

    @property
    def held_bytes(self) -> int:
        """Memory for it, about."""
        return AHEAD_BYTES + AHEAD_RUN_BYTES * len(self.runs)


AHEAD_BYTES = 256
AHEAD_RUN_BYTES = 256


@attrs.frozen
class Settled:
    """The fate of one message, or of a range of lost ones."""

    first: int
    last: int
    """Included."""
    message: Message | None
    """None: lost."""
    cause: LossCause | None = None
    rebuilt: int = 0
    """Symbols of the message that were lost and rebuilt."""
    late: bool = False
    """It was settled as lost before, and is whole now (GC-DLV-31)."""
    ahead: bool = False
    """It is not settled yet: earlier ones are still waited for (GC-DLV-35)."""
    delivered: Ahead | None = None
    """What was delivered ahead, and is settled now."""
    overtaken: bool = False
    """Later messages were delivered ahead of it."""


def _held_bytes(header: Header) -> int:
    """Memory for the message: its symbols, a byte each to tell which are present, and two for what a block needs."""
    repair_symbols = header.blocks * header.repair_symbols
    return (header.source_symbols + repair_symbols) * (header.symbol_bytes + 1) + 2 * header.blocks


def _cut(header: Header) -> tuple[int, int, int, int]:
    """What all symbols of a message say alike (GC-DLV-5)."""
    return header.message_bytes, header.symbol_bytes, header.blocks, header.repair_symbols


class _Patchwork:
    """Which symbols of a message are present, and what each block still needs. Made once some are missing in between.

    Args:
        source: The source symbols.
        in_front: So many of them, from the first on, are present.
        blocks: Blocks of the message.
        repair_symbols: Of each block.
    """

    __slots__ = ("_blocks", "_repair", "_repair_symbols", "_source", "needs", "present")

    def __init__(self, source: NDArray[np.uint8], in_front: int, blocks: int, repair_symbols: int) -> None:
        self._source = source
        self._blocks = blocks
        self._repair_symbols = repair_symbols
        self._repair: NDArray[np.uint8] | None = None
        self.present = np.zeros(len(source) + blocks * repair_symbols, np.bool_)
        self.present[:in_front] = True
        self.needs: NDArray[np.int16] = self._of_blocks(np.arange(in_front, len(source)))
        """By block: source symbols that are missing, less the repair symbols that are present."""

    @property
    def complete(self) -> bool:
        return int(self.needs.max()) <= 0

    def _of_blocks(self, places: NDArray[np.intp]) -> NDArray[np.int16]:
        """How many of these symbols each block has."""
        source = len(self._source)
        blocks = np.where(places < source, places, places - source) % self._blocks
        return np.bincount(blocks, minlength=self._blocks).astype(np.int16)

    def add(self, first: int, payloads: NDArray[np.uint8]) -> tuple[int, int]:
        """Put symbols in, from number `first` on; how many of them were of use, and how many of those are source."""
        places = first + np.flatnonzero(~self.present[first : first + len(payloads)])
        needs = self.needs - self._of_blocks(places)
        if len(places) and int(needs.max()) <= 0:  # of those behind the one that completes the message, none is of use
            places, needs = self._needed(places, needs)
        self.needs = needs
        self.present[places] = True
        of_source = int(np.searchsorted(places, len(self._source)))
        self._source[places[:of_source]] = payloads[places[:of_source] - first]
        if of_source < len(places):
            if self._repair is None:
                self._repair = np.empty((self._blocks * self._repair_symbols, payloads.shape[1]), np.uint8)
            self._repair[places[of_source:] - len(self._source)] = payloads[places[of_source:] - first]
        return len(places), of_source

    def _needed(self, places: NDArray[np.intp], needs: NDArray[np.int16]) -> tuple[NDArray[np.intp], NDArray[np.int16]]:
        """The symbols without those behind which all blocks have enough, and what the blocks then need."""
        source = len(self._source)
        last = len(places) - 1
        while needs[block := int(places[last] - (source if places[last] >= source else 0)) % self._blocks] < 0:
            needs[block] += 1
            last -= 1
        return places[: last + 1], needs

    def rebuild(self, codec: Codec, workspace: Workspace) -> int:
        """Make the missing source symbols; how many they were."""
        if self._repair is None:
            return 0
        return rebuild(
            codec,
            self._source,
            self._repair,
            present=self.present,
            blocks=self._blocks,
            workspace=workspace,
        )


class _Partial:
    """A message of which symbols have arrived."""

    __slots__ = ("_in_front", "_patchwork", "cut", "held_bytes", "symbols")

    def __init__(self, header: Header) -> None:
        self.cut = _cut(header)
        # Not zeroed: nothing of it is seen before every byte was written.
        self.symbols: NDArray[np.uint8] = np.empty((header.source_symbols, header.symbol_bytes), np.uint8)
        self.held_bytes = _held_bytes(header)
        self._in_front = 0
        """So many source symbols from the first on are present, unless there is a patchwork."""
        self._patchwork: _Patchwork | None = None

    @property
    def complete(self) -> bool:
        """Whether the message can be opened: every block has as many symbols as it has source symbols (GC-FEC-3)."""
        return self._in_front == len(self.symbols) if self._patchwork is None else self._patchwork.complete

    def add(self, first: int, payloads: NDArray[np.uint8]) -> tuple[int, int]:
        """Put symbols in, from number `first` on; how many of them were of use, and how many of those are source."""
        if self.complete:
            return 0, 0
        if self._patchwork is None:
            if first == self._in_front:  # as long as nothing is missing, there is nothing to keep account of
                stop = min(first + len(payloads), len(self.symbols))
                self.symbols[first:stop] = payloads[: stop - first]
                self._in_front = stop
                return stop - first, stop - first
            _, _, blocks, repair_symbols = self.cut
            self._patchwork = _Patchwork(self.symbols, self._in_front, blocks, repair_symbols)
        return self._patchwork.add(first, payloads)

    def open(self, codec: Codec, workspace: Workspace) -> tuple[Message, int]:
        """The message, and how many symbols of it had to be rebuilt."""
        rebuilt = self._patchwork.rebuild(codec, workspace) if self._patchwork is not None else 0
        flat = self.symbols.reshape(-1).data
        return open_message(flat[: self.cut[0]]), rebuilt


class Reassembler:
    """The messages of one session, from symbols in any order to whole messages in theirs.

    `settled` collects the fate of messages, in order, each number exactly once (GC-MOD-2, GC-MOD-4); and once more,
    as late, a message that was lost and is made whole by a repeat.

    Args:
        next_message: The first number that is owed.
        lost: Of the numbers before it, those that are lost.
        bytes_max: Memory for incomplete, waiting and late messages.
        message_bytes_max: The longest message taken.
        hold_s: How long a missing message is waited for.
        available: Deliver each message as soon as it is whole (GC-DLV-35).
        ahead: What was delivered before earlier ones.
        codec: Rebuilds lost symbols.
    """

    def __init__(
        self,
        *,
        next_message: int,
        lost: Iterable[Range] = (),
        bytes_max: int,
        message_bytes_max: int,
        hold_s: float,
        codec: Codec,
        available: bool = False,
        ahead: Iterable[Ahead] = (),
    ) -> None:
        self.next_message = next_message
        """The number that is due next: all before are settled."""
        self.settled: list[Settled] = []
        self.held_bytes = 0
        """Memory of incomplete and waiting messages."""
        self.late_bytes = 0
        """Memory of what has arrived of lost messages."""
        self.lost_forgotten = 0
        """Lost messages that would not be taken any more (GC-DLV-32)."""
        self.repeats_not_needed = 0
        """Source symbols that came and were not needed: of repeats, or behind repair symbols."""
        self._lost = RangeSet(lost)
        self._late: OrderedDict[int, _Partial] = OrderedDict()
        """Incomplete lost messages, the one to which a symbol was added longest ago first."""
        self._bytes_max = bytes_max
        self._message_bytes_max = message_bytes_max
        self._hold_s = hold_s
        self._codec = codec
        self._workspace = Workspace()
        self._granularity_s = hold_s / 16 or 1e-9
        self._held: dict[int, _Partial] = {}
        self._order: list[int] = []
        """Heap of the numbers held. Those that were delivered ahead stay in it until they are the lowest."""
        self._available = available
        self._ahead: dict[int, Ahead | None] = {}
        """Delivered before earlier ones, and not settled; None if it was whole and damaged."""
        self._ahead_order: list[int] = []
        """Heap of their numbers."""
        self._ahead_missing: set[int] = set()
        """Of them, those that the owner could not keep."""
        self.ahead_bytes = 0
        """Memory of what is remembered of messages that were delivered ahead."""
        self._suspicions: deque[tuple[float, int]] = deque()
        """(time, number): all messages below `number` were sent by that time."""
        self._known_sent = next_message
        self._seen = next_message
        """One more than the highest number of which a symbol came."""
        for each in ahead:
            if each.number >= next_message:
                self._note_ahead(each.number, each)
                self._seen = max(self._seen, each.number + 1)
        self._advance()

    @property
    def known_sent(self) -> int:
        """Messages that are known to have been sent."""
        return max(self._known_sent, self._seen)

    @property
    def held_messages(self) -> int:
        """Incomplete or waiting messages."""
        return len(self._held)

    @property
    def ahead_messages(self) -> int:
        """Messages that were delivered before earlier ones that are still waited for."""
        return len(self._ahead)

    @property
    def late_messages(self) -> int:
        """Lost messages of which something is held."""
        return len(self._late)

    @property
    def lost(self) -> RangeSet:
        """Messages that are lost, and taken again when a repeat comes (GC-DLV-31)."""
        return self._lost

    def add(self, header: Header, payloads: NDArray[np.uint8], now_s: float) -> tuple[int, DropReason | None]:
        """Take in consecutive symbols of one message; `header` is that of the first.

        Returns:
            How many of the datagrams were dropped, and why.
        """
        number = header.message
        count = len(payloads)
        if header.message_bytes > self._message_bytes_max or _held_bytes(header) > self._bytes_max:
            self.learn(number + 1, now_s)
            return count, DropReason.OVER_LIMIT
        self.learn(number, now_s)
        if number < self.next_message:
            return self._add_late(header, payloads)
        if number in self._ahead:
            return self._unused(header, count)
        partial = self._held.get(number)
        if partial is None:
            partial = self._hold(number, header)
            if partial is None:
                return self._add_late(header, payloads)
        elif partial.cut != _cut(header):
            return count, DropReason.INCONSISTENT_MESSAGE
        used, of_source = partial.add(header.symbol, payloads)
        if partial.complete and number == self.next_message:
            self._advance()
        elif partial.complete and self._available:
            self._deliver_ahead(number)
        return self._unused(header, count, used, of_source)

    def miss(self, number: int) -> None:
        """A message that was settled is missing after all: take it again when it is repeated."""
        if number < self.next_message:
            self._note_lost(number, number)
        elif number in self._ahead:
            self._ahead_missing.add(number)

    def learn(self, sent: int, now_s: float) -> None:
        """All messages below `sent` were sent: those that are missing are late from now on (GC-DLV-8)."""
        if sent <= self._known_sent:
            return
        self._known_sent = sent
        if sent <= self.next_message:
            return
        # Times are rounded up to a grid, so that few suspicions are remembered however many messages pass.
        time = math.ceil(now_s / self._granularity_s) * self._granularity_s
        if self._suspicions and self._suspicions[-1][0] >= time:
            self._suspicions[-1] = (self._suspicions[-1][0], sent)
        else:
            self._suspicions.append((time, sent))

    def next_deadline_s(self) -> float | None:
        """When the oldest missing message is to be given up; None when nothing is late."""
        while self._suspicions and self._suspicions[0][1] <= self.next_message:
            self._suspicions.popleft()
        return self._suspicions[0][0] + self._hold_s if self._suspicions else None

    def expire(self, now_s: float) -> None:
        """Give up what is due (GC-DLV-8)."""
        while (deadline := self.next_deadline_s()) is not None and now_s >= deadline:
            self.settle_below(self._suspicions.popleft()[1], LossCause.GAP)

    def settle_below(self, number: int, cause: LossCause) -> None:
        """Settle all messages below `number` now: those that are complete are delivered, the others lost."""
        while (oldest := self._oldest_held()) is not None and oldest < number:
            if self._held[oldest].complete:
                self._skip_to(oldest, cause)
                self._advance()
            else:
                self._keep_as_late(oldest)
        self._skip_to(number, cause)
        self._advance()

    def settle_complete(self, cause: LossCause) -> None:
        """Deliver all complete messages now; what is missing before them is lost, what is missing behind is not."""
        self.settle_below(max((n + 1 for n, partial in self._held.items() if partial.complete), default=0), cause)

    def settle_known(self, cause: LossCause) -> None:
        """Settle every message that is known to have been sent."""
        self.settle_below(max([self._known_sent, *(n + 1 for n in self._held)]), cause)

    def _hold(self, number: int, header: Header) -> _Partial | None:
        partial = _Partial(header)
        while (self._held or self._late or self._ahead) and not self._fits(partial.held_bytes):
            self._make_room(number)
            if number < self.next_message:
                return None  # it was the oldest itself
        self._held[number] = partial
        self._seen = max(self._seen, number + 1)
        heapq.heappush(self._order, number)
        self.held_bytes += partial.held_bytes
        return partial

    def _make_room(self, number: int) -> None:
        """Forget what is lost; else give up the oldest missing message (GC-DLV-9): what waits behind it is settled.

        Args:
            number: For this one; no later one is given up for it.
        """
        if self._late:
            self._forget_late(next(iter(self._late)))
            return
        oldest = self._oldest_held()
        ahead = self._ahead_order[0] if self._ahead_order else None
        stop = min(each for each in (number, oldest, ahead) if each is not None)
        self.settle_below(max(self.next_message + 1, stop), LossCause.OVERFLOW)

    def _fits(self, size_bytes: int, late_bytes: int | None = None, late_messages: int | None = None) -> bool:
        """Whether there is room for one message more, beside what is held, and beside so much of late ones."""
        late_bytes = self.late_bytes if late_bytes is None else late_bytes
        late_messages = len(self._late) if late_messages is None else late_messages
        return (
            self.held_bytes + self.ahead_bytes + late_bytes + size_bytes <= self._bytes_max
            and len(self._held) + len(self._ahead) + late_messages < MESSAGES_HELD_MAX
        )

    def _add_late(self, header: Header, payloads: NDArray[np.uint8]) -> tuple[int, DropReason | None]:
        """Take in symbols of a message that is settled: if it was lost (GC-DLV-31), and behind those that are owed
        (GC-DLV-32)."""
        number, count = header.message, len(payloads)
        if not self._lost or not self._lost.within(number, number):
            return self._unused(header, count)
        partial = self._late.get(number)
        if partial is None:
            size_bytes = _held_bytes(header)
            if not self._fits(size_bytes, late_bytes=0, late_messages=0):
                return count, DropReason.OVER_LIMIT
            while not self._fits(size_bytes):
                self._forget_late(next(iter(self._late)))
            partial = self._late[number] = _Partial(header)
            self.late_bytes += partial.held_bytes
        elif partial.cut != _cut(header):
            return count, DropReason.INCONSISTENT_MESSAGE
        else:
            self._late.move_to_end(number)
        used, of_source = partial.add(header.symbol, payloads)
        if partial.complete:
            self._deliver_late(number, partial)
        return self._unused(header, count, used, of_source)

    def _unused(self, header: Header, count: int, used: int = 0, of_source: int = 0) -> tuple[int, DropReason | None]:
        """Drop what is left of so many symbols when some of them, and of those some source symbols, were used."""
        if used == count:
            return 0, None
        self.repeats_not_needed += max(0, min(count, header.source_symbols - header.symbol)) - of_source
        return count - used, DropReason.NOT_NEEDED

    def _deliver_ahead(self, number: int) -> None:
        """Deliver a message that is whole while earlier ones are not, and remember what its order needs."""
        partial = self._release(number)
        try:
            message, rebuilt = partial.open(self._codec, self._workspace)
        except RemoteProtocolError:
            self._note_ahead(number, None)
        else:
            self.settled.append(Settled(number, number, message, rebuilt=rebuilt, ahead=True))
            runs = tuple(message.runs)
            ahead = Ahead(
                number=number, first_record=message.first_record, record_count=message.record_count, runs=runs
            )
            self._note_ahead(number, ahead)
        while self._ahead and self.held_bytes + self.ahead_bytes + self.late_bytes > self._bytes_max:
            self._make_room(number)

    def _note_ahead(self, number: int, ahead: Ahead | None) -> None:
        self._ahead[number] = ahead
        heapq.heappush(self._ahead_order, number)
        self.ahead_bytes += AHEAD_BYTES if ahead is None else ahead.held_bytes

    def _deliver_late(self, number: int, partial: _Partial) -> None:
        self._forget_late(number)
        self._lost.remove(number, number)
        try:
            message, rebuilt = partial.open(self._codec, self._workspace)
        except RemoteProtocolError:
            return  # it stays reported as lost
        self.settled.append(Settled(number, number, message, rebuilt=rebuilt, late=True))

    def _forget_late(self, number: int) -> None:
        self.late_bytes -= self._late.pop(number).held_bytes

    def _note_lost(self, first: int, last: int) -> None:
        """These are lost from now on; of too many ranges, the oldest is forgotten (GC-DLV-32)."""
        self._lost.add(first, last)
        while len(self._lost) > LOST_RANGES_MAX:
            oldest = next(iter(self._lost))
            self._lost.remove(*oldest)
            self.lost_forgotten += oldest[1] - oldest[0] + 1
            for number in [number for number in self._late if oldest[0] <= number <= oldest[1]]:
                self._forget_late(number)

    def _skip_to(self, number: int, cause: LossCause) -> None:
        """All messages before `number` that are not settled are lost; none of them is held any more."""
        while self.next_message < number:
            stop = min(number, self._ahead_order[0]) if self._ahead_order else number
            self._lose_to(stop, cause)
            self._settle_ahead()

    def _lose_to(self, number: int, cause: LossCause) -> None:
        if number <= self.next_message:
            return
        last = self.settled[-1] if self.settled else None
        if (
            last is not None
            and last.message is None
            and last.delivered is None
            and last.cause is cause
            and last.last == self.next_message - 1
        ):
            self.settled[-1] = Settled(last.first, number - 1, None, cause)
        else:
            self.settled.append(Settled(self.next_message, number - 1, None, cause))
        self._note_lost(self.next_message, number - 1)
        self.next_message = number

    def _settle_ahead(self) -> None:
        """What was delivered ahead is settled as soon as everything before it is."""
        while self._ahead_order and self._ahead_order[0] == self.next_message:
            number = heapq.heappop(self._ahead_order)
            ahead = self._ahead.pop(number)
            self.ahead_bytes -= AHEAD_BYTES if ahead is None else ahead.held_bytes
            cause = LossCause.DAMAGED if ahead is None else None
            self.settled.append(Settled(number, number, None, cause, delivered=ahead))
            self.next_message = number + 1
            if number in self._ahead_missing:
                self._ahead_missing.remove(number)
                self._note_lost(number, number)

    def _advance(self) -> None:
        """Deliver and settle what is due."""
        self._settle_ahead()
        while (partial := self._held.get(self.next_message)) is not None and partial.complete:
            number = self.next_message
            self._release(number)
            try:
                message, rebuilt = partial.open(self._codec, self._workspace)
                self.settled.append(Settled(number, number, message, rebuilt=rebuilt, overtaken=bool(self._ahead)))
            except RemoteProtocolError:
                self.settled.append(Settled(number, number, None, LossCause.DAMAGED))
            self.next_message = number + 1
            self._settle_ahead()

    def _oldest_held(self) -> int | None:
        """The lowest number held; what is not held any more leaves the heap."""
        while self._order and self._order[0] not in self._held:
            heapq.heappop(self._order)
        return self._order[0] if self._order else None

    def _release(self, number: int) -> _Partial:
        partial = self._held.pop(number)
        self.held_bytes -= partial.held_bytes
        self._oldest_held()
        return partial

    def _keep_as_late(self, number: int) -> None:
        """Give up a message that is held; a repeat need only bring what is missing of it."""
        partial = self._late[number] = self._release(number)
        self.late_bytes += partial.held_bytes
