"""How far the egress has come: what may be stored as settled, and not a message more (GC-DLV-18, GC-DLV-19)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import attrs

from gapconn.protocol.events import (
    Event,
    FollowReason,
    MessageDelivered,
    MessageSettled,
    MessagesLost,
    RecordsLost,
    SessionFollowed,
)
from gapconn.protocol.positions import Standing, StreamPartition
from gapconn.protocol.progress import Progress
from gapconn.protocol.reassembler import Ahead
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX


@attrs.define
class _Step:
    """What becomes of the progress when this, and all before it, is settled."""

    epoch: int
    next_message: int | None = None
    """None leaves it as it is; for the next record too."""
    next_record: int | None = None
    positions: dict[StreamPartition, Standing] = attrs.field(factory=dict)
    accepted: bool = True
    ahead: Ahead | None = None
    """If it was delivered before earlier ones, and is not settled: what is to be stored of it."""

    def join(self, later: _Step) -> None:
        """Take in the step behind this one."""
        if later.epoch != self.epoch:
            self.epoch, self.next_message, self.next_record = later.epoch, None, None
        if later.next_message is not None:
            self.next_message = later.next_message
        if later.next_record is not None:  # a late message may be of records that were passed
            self.next_record = max(later.next_record, self.next_record or 0)
        self.positions.update(later.positions)


def continued(progress: Progress | None, spooled: Iterable[MessageDelivered]) -> Progress | None:
    """The progress with what is in the spool beyond it: the egress has that for good (GC-DLV-19).

    Args:
        progress: As it was stored; None if nothing was.
        spooled: Messages in the order of the spool. Whatever was missing between them was settled before.
    """
    positions = dict(progress.positions) if progress else {}
    ahead = {each.number: each for each in progress.ahead} if progress else {}

    def reach(key: StreamPartition, standing: Standing) -> None:
        if standing > positions.get(key, (0, 0, 0)):
            positions.pop(key, None)  # the one that was updated last comes last
            positions[key] = standing

    for message in spooled:
        if message.late:
            for key, standing in message.positions.items():
                reach(key, standing)
            progress = attrs.evolve(progress, positions=positions) if progress else None
            continue
        if progress and (message.epoch, message.number) < (progress.epoch, progress.next_message):
            continue
        if progress is None or progress.epoch != message.epoch:
            ahead = {}
            progress = Progress(epoch=message.epoch, next_message=0, next_record=0, positions=positions)
        next_message, next_record = message.number + 1, message.first_record + message.record_count
        known = max(next_message, progress.messages_known)
        records_known = max(next_record, progress.records_known)
        if message.ahead:
            ahead[message.number] = ahead_of(message)
            next_message, next_record = progress.next_message, progress.next_record
        for number in [number for number in ahead if number < next_message]:
            for run in ahead.pop(number).runs:
                reach((run.stream, run.partition), Standing(message.epoch, run.chain, run.last))
        for key, standing in message.positions.items():
            positions.pop(key, None)
            positions[key] = standing
        progress = attrs.evolve(
            progress,
            next_message=next_message,
            next_record=next_record,
            positions=positions,
            messages_known=known,
            records_known=records_known,
            ahead=tuple(ahead.values()),
        )
    return progress


def joined(stored: Progress | None, target: Progress | None) -> Progress | None:
    """Where an egress goes on: behind what it has settled, and behind what its target has (GC-ONCE-3).

    Each of the two may be ahead: the target, if the egress was killed before it stored that, or another egress has
    delivered meanwhile; the egress, of what it keeps in its spool, and of what was lost or had nothing to deliver.
    """
    if stored is None or target is None:
        return stored or target
    ahead = max(target, stored, key=lambda each: (each.epoch, each.next_message))
    same = [each for each in (stored, target) if each.epoch == ahead.epoch]
    positions = dict(stored.positions)
    for key, standing in target.positions.items():
        # Of one link, the later one is the larger one: by session, by chain in it, by position in that.
        if key not in positions or standing > positions[key]:
            positions.pop(key, None)
            positions[key] = standing
    next_record = max(each.next_record for each in same if each.next_message == ahead.next_message)
    return Progress(
        epoch=ahead.epoch,
        next_message=ahead.next_message,
        next_record=next_record,
        positions=positions,
        messages_known=max(ahead.next_message, *(each.messages_known for each in same)),
        records_known=max(next_record, *(each.records_known for each in same)),
        ended=any(each.ended for each in same),
    )


class DeliveredSoFar:
    """How far each stream partition is delivered, as it is stored: what a restart of the egress does not take back.

    Args:
        resume: The stored progress with which the egress started.
    """

    def __init__(self, resume: Progress | None = None) -> None:
        self._positions: OrderedDict[StreamPartition, Standing] = OrderedDict(resume.positions if resume else {})

    def stored(self, progress: Progress) -> None:
        """This progress is on disk."""
        for key, standing in progress.positions.items():
            self._positions[key] = standing
            self._positions.move_to_end(key)
        while len(self._positions) > POSITIONS_TRACKED_MAX:
            self._positions.popitem(last=False)

    def next_positions(self) -> dict[StreamPartition, int]:
        """By stream partition: the next position that is missed. One of which nothing was delivered is not in it."""
        return {key: standing.position + 1 for key, standing in self._positions.items()}


def ahead_of(message: MessageDelivered) -> Ahead:
    """What is to be remembered of a message that was delivered before earlier ones."""
    return Ahead(
        number=message.number,
        first_record=message.first_record,
        record_count=message.record_count,
        runs=tuple(message.runs),
    )


class ProgressTracker:
    """Turns acceptances, in whatever order they come, into progress up to the first message not accepted.

    Args:
        resume: The stored progress, on which the new one builds.
    """

    def __init__(self, resume: Progress | None = None) -> None:
        self._open: deque[_Step] = deque()
        self._ahead: dict[tuple[int, int], _Step] = {}
        """By epoch and number: delivered, and not settled yet."""
        self._accepted_ahead: list[tuple[int, Ahead]] = []
        """Accepted since `take` before it had its turn, with its epoch."""
        self._done = _Step(resume.epoch, resume.next_message, resume.next_record) if resume else _Step(epoch=0)
        self._changed = False
        self._expected = 0
        self.accepted = 0
        """Messages that were accepted in this life, by the sink or by the spool."""
        self._known: dict[int, tuple[int, int, bool]] = {}
        if resume:
            self._known[resume.epoch] = (resume.messages_known, resume.records_known, resume.ended)

    @property
    def waiting(self) -> int:
        """Messages that are not accepted yet."""
        return self._expected - self.accepted

    def expect(self, message: MessageDelivered) -> Callable[[], None]:
        """`message` goes to the sink; the function to call when the sink has it for good, or the spool on disk."""
        step = _Step(
            epoch=message.epoch,
            next_message=None if message.late else message.number + 1,
            next_record=message.first_record + message.record_count,
            positions=dict(message.positions),
            accepted=False,
        )
        if message.ahead:
            step.ahead = ahead_of(message)
            self._ahead[message.epoch, message.number] = step
        else:
            self._open.append(step)
        self._expected += 1

        def accept() -> None:
            if step.ahead is not None and not step.accepted:
                self._accepted_ahead.append((step.epoch, step.ahead))
                self._changed = True
            self.accepted += not step.accepted
            step.accepted = True
            self._advance()

        return accept

    def happened(self, event: Event) -> None:
        """Take in what is settled without a sink: a new session, losses."""
        match event:
            case SessionFollowed() if event.reason is not FollowReason.RESUMED:
                self._add(_Step(event.epoch, next_message=0, next_record=0))
            case MessagesLost():
                self.settle(event.epoch, event.last + 1)
            case MessageSettled():
                step = self._ahead.pop((event.epoch, event.number), None)
                # Of one that was accepted in an earlier life nothing is waited for.
                step = _Step(event.epoch) if step is None else step
                step.next_message, step.next_record = event.number + 1, event.next_record
                step.positions = dict(event.positions)
                self._add(step)
            case RecordsLost():
                self._add(_Step(event.epoch, next_record=event.first + event.count))

    def settle(self, epoch: int, next_message: int) -> None:
        """The messages before `next_message` are lost: nothing waits for them."""
        self._add(_Step(epoch, next_message=next_message))

    def known(self, epoch: int, messages: int, records: int, *, ended: bool) -> None:
        """So much of the session `epoch` is known to have been sent: what is not settled of it is stored as owed."""
        known = (messages, records, ended)
        if self._known.get(epoch) != known:
            self._known[epoch] = known
            self._changed = True

    def take(self) -> Progress | None:
        """The progress to store, with only the positions that changed; None if nothing did since the last call."""
        if not self._changed:
            return None
        self._changed = False
        done = self._done
        positions, done.positions = done.positions, {}
        self._known = {epoch: known for epoch, known in self._known.items() if epoch >= done.epoch}
        messages_known, records_known, ended = self._known.get(done.epoch, (0, 0, False))
        return Progress(
            epoch=done.epoch,
            next_message=done.next_message or 0,
            next_record=done.next_record or 0,
            positions=positions,
            messages_known=max(messages_known, done.next_message or 0),
            records_known=max(records_known, done.next_record or 0),
            ended=ended,
            ahead=self._take_ahead(),
        )

    def give_back(self, progress: Progress) -> None:
        """What `take` said could not be stored: it is part of what it says next."""
        positions = {**progress.positions, **self._done.positions}
        while len(positions) > POSITIONS_TRACKED_MAX:
            del positions[next(iter(positions))]
        self._done.positions = positions
        self._accepted_ahead = [*((progress.epoch, each) for each in progress.ahead), *self._accepted_ahead]
        self._changed = True

    def _take_ahead(self) -> tuple[Ahead, ...]:
        """What was accepted since the last call, and is beyond what is settled."""
        accepted, self._accepted_ahead = self._accepted_ahead, []
        done = self._done
        return tuple(a for epoch, a in accepted if epoch == done.epoch and a.number >= (done.next_message or 0))

    def _add(self, step: _Step) -> None:
        self._open.append(step)
        self._advance()

    def _advance(self) -> None:
        while self._open and self._open[0].accepted:
            self._done.join(self._open.popleft())
            self._changed = True
        # A sink that hangs must not make a list of all that is lost or refused meanwhile.
        while len(self._open) > 1 and self._open[-1].accepted and self._open[-2].accepted:
            last = self._open.pop()
            self._open[-1].join(last)
