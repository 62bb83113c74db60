"""How far the sink has come: what may be stored as delivered, and not a message more (GC-DLV-18)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import StreamPartition
from gapconn.protocol.receiver import Progress


@attrs.define
class _Expected:
    """A message whose fate is open until it is accepted."""

    epoch: int
    next_message: int
    next_record: int | None
    positions: dict[StreamPartition, int]
    accepted: bool = False


class ProgressTracker:
    """Turns acceptances, in whatever order they come, into progress up to the first message not accepted."""

    def __init__(self) -> None:
        self._open: deque[_Expected] = deque()
        self._epoch = 0
        self._next_message = 0
        self._next_record = 0
        self._positions: dict[StreamPartition, int] = {}
        self._changed = False

    @property
    def settled(self) -> bool:
        """Whether nothing waits for its acceptance."""
        return not self._open

    def expect(self, message: MessageDelivered) -> Callable[[], None]:
        """`message` goes to the sink; the function to call when the sink has it for good."""
        expected = _Expected(
            epoch=message.epoch,
            next_message=message.number + 1,
            next_record=message.first_record + message.record_count,
            positions={(run.stream, run.partition): run.last for run in message.runs},
        )
        self._open.append(expected)

        def accept() -> None:
            expected.accepted = True
            self._advance()

        return accept

    def settle(self, epoch: int, next_message: int) -> None:
        """The messages before `next_message` are lost: nothing waits for them."""
        self._open.append(_Expected(epoch, next_message, None, {}, accepted=True))
        self._advance()

    def take(self) -> Progress | None:
        """The progress to store, with only the positions that changed; None if nothing did since the last call."""
        if not self._changed:
            return None
        self._changed = False
        positions, self._positions = self._positions, {}
        return Progress(
            epoch=self._epoch, next_message=self._next_message, next_record=self._next_record, positions=positions
        )

    def _advance(self) -> None:
        while self._open and self._open[0].accepted:
            done = self._open.popleft()
            if done.epoch != self._epoch:
                self._next_record = 0
            self._epoch = done.epoch
            self._next_message = done.next_message
            if done.next_record is not None:
                self._next_record = done.next_record
            self._positions.update(done.positions)
            self._changed = True
