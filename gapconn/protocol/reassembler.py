"""Symbols become messages again, in order, in bounded memory and time (spec/delivery.md)."""

from __future__ import annotations

import heapq
import math
from collections import deque

import attrs
import numpy as np
from numpy.typing import NDArray

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.envelope import Message, open_message
from gapconn.protocol.registry import MESSAGES_HELD_MAX, DropReason, LossCause
from gapconn.protocol.wire import Header


@attrs.frozen
class Settled:
    """The fate of one message, or of a range of lost ones."""

    first: int
    last: int
    """Included."""
    message: Message | None
    """None: lost."""
    cause: LossCause | None = None


def _held_bytes(header: Header) -> int:
    """Memory for the message: its symbols, and one byte each to tell which are present."""
    return header.source_symbols * (header.symbol_bytes + 1)


def _cut(header: Header) -> tuple[int, int, int, int]:
    """What all symbols of a message say alike (GC-DLV-5)."""
    return header.message_bytes, header.symbol_bytes, header.blocks, header.repair_symbols


class _Partial:
    """A message of which symbols have arrived."""

    __slots__ = ("arrived", "cut", "held_bytes", "message_bytes", "prefix", "present", "symbols")

    def __init__(self, header: Header) -> None:
        self.message_bytes = header.message_bytes
        self.cut = _cut(header)
        # Not zeroed: nothing of it is seen before every byte was written.
        self.symbols: NDArray[np.uint8] = np.empty((header.source_symbols, header.symbol_bytes), np.uint8)
        self.held_bytes = _held_bytes(header)
        self.arrived = 0
        self.prefix = 0
        """So many symbols from the first on are present; the rest is told by `present` once it is needed."""
        self.present: NDArray[np.bool_] | None = None

    @property
    def complete(self) -> bool:
        return self.arrived == len(self.symbols)

    def add(self, first: int, payloads: NDArray[np.uint8]) -> int:
        """Put symbols in, from `first` on; how many of them were new."""
        stop = first + len(payloads)
        if self.present is None and first == self.prefix:
            self.symbols[first:stop] = payloads
            self.prefix = stop
            self.arrived = stop
            return len(payloads)
        if self.present is None:
            self.present = np.zeros(len(self.symbols), np.bool_)
            self.present[: self.prefix] = True
        wanted = ~self.present[first:stop]
        new = int(np.count_nonzero(wanted))
        self.symbols[first:stop][wanted] = payloads[wanted]
        self.present[first:stop] = True
        self.arrived += new
        return new

    def open(self) -> Message:
        flat = self.symbols.reshape(-1).data
        return open_message(flat[: self.message_bytes])


class Reassembler:
    """The messages of one session, from symbols in any order to whole messages in theirs.

    `settled` collects the fate of messages, in order, each number exactly once (GC-MOD-2, GC-MOD-4).

    Args:
        next_message: The first number that is owed.
        bytes_max: Memory for incomplete and waiting messages.
        message_bytes_max: The longest message taken.
        reorder_timeout_s: How long a missing message holds back later ones.
    """

    def __init__(self, *, next_message: int, bytes_max: int, message_bytes_max: int, reorder_timeout_s: float) -> None:
        self.next_message = next_message
        """The number that is due next: all before are settled."""
        self.settled: list[Settled] = []
        self.held_bytes = 0
        self._bytes_max = bytes_max
        self._message_bytes_max = message_bytes_max
        self._reorder_timeout_s = reorder_timeout_s
        self._granularity_s = reorder_timeout_s / 16 or 1e-9
        self._held: dict[int, _Partial] = {}
        self._order: list[int] = []
        """Heap of the numbers held. Only the lowest ever leaves, so it never has others."""
        self._suspicions: deque[tuple[float, int]] = deque()
        """(time, number): all messages below `number` were sent by that time."""
        self._known_sent = next_message
        self._seen = next_message
        """One more than the highest number of which a symbol came."""

    @property
    def known_sent(self) -> int:
        """Messages that are known to have been sent."""
        return max(self._known_sent, self._seen)

    @property
    def held_messages(self) -> int:
        """Incomplete or waiting messages."""
        return len(self._held)

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
            return count, DropReason.NOT_NEEDED
        partial = self._held.get(number)
        if partial is None:
            partial = self._hold(number, header)
            if partial is None:
                return count, DropReason.NOT_NEEDED
        elif partial.cut != _cut(header):
            return count, DropReason.INCONSISTENT_MESSAGE
        source = min(count, max(0, header.source_symbols - header.symbol))
        new = partial.add(header.symbol, payloads[:source]) if source and not partial.complete else 0
        if partial.complete and number == self.next_message:
            self._deliver_ready()
        return (count - new, DropReason.NOT_NEEDED) if new < count else (0, None)

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
        return self._suspicions[0][0] + self._reorder_timeout_s if self._suspicions else None

    def expire(self, now_s: float) -> None:
        """Give up what is due (GC-DLV-8)."""
        while (deadline := self.next_deadline_s()) is not None and now_s >= deadline:
            self.settle_below(self._suspicions.popleft()[1], LossCause.GAP)

    def settle_below(self, number: int, cause: LossCause) -> None:
        """Settle all messages below `number` now: those that are complete are delivered, the others lost."""
        while self._order and (oldest := self._order[0]) < number:
            if self._held[oldest].complete:
                self._skip_to(oldest, cause)
                self._deliver_ready()
            else:
                self._release_oldest()
        self._skip_to(number, cause)
        self._deliver_ready()

    def settle_complete(self, cause: LossCause) -> None:
        """Deliver all complete messages now; what is missing before them is lost, what is missing behind is not."""
        self.settle_below(max((n + 1 for n, partial in self._held.items() if partial.complete), default=0), cause)

    def settle_known(self, cause: LossCause) -> None:
        """Settle every message that is known to have been sent."""
        self.settle_below(max([self._known_sent, *(n + 1 for n in self._held)]), cause)

    def _hold(self, number: int, header: Header) -> _Partial | None:
        partial = _Partial(header)
        while self._held and (
            self.held_bytes + partial.held_bytes > self._bytes_max or len(self._held) >= MESSAGES_HELD_MAX
        ):
            # The oldest missing message makes room (GC-DLV-9), and what waits behind it is delivered.
            self.settle_below(max(self.next_message + 1, min(self._order[0], number)), LossCause.OVERFLOW)
            if number < self.next_message:
                return None  # it was the oldest itself
        self._held[number] = partial
        self._seen = max(self._seen, number + 1)
        heapq.heappush(self._order, number)
        self.held_bytes += partial.held_bytes
        return partial

    def _skip_to(self, number: int, cause: LossCause) -> None:
        """All messages before `number` that are not settled are lost; none of them is held any more."""
        if number <= self.next_message:
            return
        last = self.settled[-1] if self.settled else None
        if last is not None and last.message is None and last.cause is cause and last.last == self.next_message - 1:
            self.settled[-1] = Settled(last.first, number - 1, None, cause)
        else:
            self.settled.append(Settled(self.next_message, number - 1, None, cause))
        self.next_message = number

    def _deliver_ready(self) -> None:
        while (partial := self._held.get(self.next_message)) is not None and partial.complete:
            number = self.next_message
            self._release_oldest()
            try:
                self.settled.append(Settled(number, number, partial.open()))
            except RemoteProtocolError:
                self.settled.append(Settled(number, number, None, LossCause.DAMAGED))
            self.next_message = number + 1

    def _release_oldest(self) -> None:
        self.held_bytes -= self._held.pop(heapq.heappop(self._order)).held_bytes
