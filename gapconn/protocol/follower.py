"""Which session holds the link, and who else would like to (spec/session.md)."""

from __future__ import annotations

from gapconn.protocol.events import (
    ConflictCleared,
    ConflictDetected,
    Event,
    FollowReason,
    LinkInterrupted,
    LinkRestored,
    SessionFollowed,
)
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.states import ReceiverEffect, ReceiverInput, ReceiverMachine, ReceiverState

_OWN = {
    DatagramType.STARTUP: ReceiverInput.OWN_STARTUP,
    DatagramType.DATA: ReceiverInput.OWN_DATA,
    DatagramType.HEARTBEAT: ReceiverInput.OWN_HEARTBEAT,
    DatagramType.SHUTDOWN: ReceiverInput.OWN_SHUTDOWN,
}


class Follower:
    """Follows one session at a time; watches its silence and its rivals.

    Args:
        followed_epoch: Epoch of the session in the stored state; 0 without stored state.
        interruption_timeout_s: The egress's own, used until a session announces one (GC-TIME-2).
        now_s: The time.
    """

    def __init__(self, *, followed_epoch: int, interruption_timeout_s: float, now_s: float) -> None:
        self.epoch = followed_epoch
        self.interruption_timeout_s = interruption_timeout_s
        self.events: list[Event] = []
        self._machine = ReceiverMachine()
        self._last_heard_s = now_s
        self._followed_since_s = now_s
        self._rival_epoch = 0
        self._rival_heard_s: float | None = None
        self._conflict = False
        self._conflict_raised_s: float | None = None

    @property
    def state(self) -> ReceiverState:
        """Where the followed session is."""
        return self._machine.state

    @property
    def conflict(self) -> bool:
        """Whether two ingresses are heard."""
        return self._conflict

    def silent_s(self, now_s: float) -> float:
        """Seconds since the followed session was heard, or since the start."""
        return max(0.0, now_s - self._last_heard_s)

    def hear(
        self, kind: DatagramType, epoch: int, previous_epoch: int | None, now_s: float
    ) -> tuple[DropReason | None, bool]:
        """A datagram of this link was heard.

        Args:
            kind: Its type.
            epoch: Its session.
            previous_epoch: What its announcement names as the session before; None for Data.
            now_s: The time.

        Returns:
            Why the datagram is to be dropped, or None; and whether its session has just taken the link.
        """
        what = self._sort(kind, epoch, previous_epoch)
        before = self._machine.state
        effect = self._machine.step(what)
        if effect is ReceiverEffect.DROP_CONFLICT:
            self._heard_rival(epoch, now_s)
            return DropReason.CONFLICT, False
        if effect is ReceiverEffect.DROP_STALE:
            if now_s > self._followed_since_s + self.interruption_timeout_s:
                # It should have stopped long ago: it is alive, and was only put in the shade by a newer ingress.
                self._heard_rival(epoch, now_s)
                self._raise_conflict(now_s)
            return DropReason.STALE_SESSION, False
        taken = effect is ReceiverEffect.TAKE_OVER
        if taken:
            self._take_over(epoch, what, before, now_s)
            self._machine.step(_OWN[kind])
        if before is ReceiverState.INTERRUPTED:
            self.events.append(LinkRestored(epoch=epoch, silent_s=self.silent_s(now_s)))
        self._last_heard_s = now_s
        if self._rival_heard_s is not None:
            if now_s <= self._rival_heard_s + self.interruption_timeout_s:
                self._raise_conflict(now_s)
            else:
                self._forget_rival()
        return None, taken

    def use_timeout(self, interruption_timeout_s: float, now_s: float) -> None:
        """That is the interruption timeout from now on. What is overdue by it is done before anything else is heard."""
        self.interruption_timeout_s = interruption_timeout_s
        self.handle_timeout(now_s)

    def next_deadline_s(self) -> float | None:
        """When `handle_timeout` has something to do; None when never."""
        deadlines = []
        if self._machine.state in (ReceiverState.WAITING, ReceiverState.FOLLOWING):
            deadlines.append(self._last_heard_s + self.interruption_timeout_s)
        if self._rival_heard_s is not None:
            deadlines.append(self._rival_heard_s + self.interruption_timeout_s)
        return min(deadlines, default=None)

    def handle_timeout(self, now_s: float) -> None:
        """Notice silence: of the followed session (GC-SESS-13), and of a rival (GC-SESS-11)."""
        # The very sums of `next_deadline_s`: a difference may round to just below the timeout, and the owner would be
        # told of a deadline that never does anything.
        silent = now_s >= self._last_heard_s + self.interruption_timeout_s
        if silent and self._machine.step(ReceiverInput.SILENCE) is ReceiverEffect.RAISE_INTERRUPTED:
            self.events.append(LinkInterrupted(epoch=self.epoch, silent_s=self.silent_s(now_s)))
        if self._rival_heard_s is not None and now_s >= self._rival_heard_s + self.interruption_timeout_s:
            self._forget_rival()

    def _sort(self, kind: DatagramType, epoch: int, previous_epoch: int | None) -> ReceiverInput:
        if epoch == self.epoch:
            return _OWN[kind]
        if epoch < self.epoch:
            return ReceiverInput.STALE
        if previous_epoch and previous_epoch == self.epoch:
            return ReceiverInput.SUCCESSOR
        return ReceiverInput.NEWCOMER

    def _take_over(self, epoch: int, what: ReceiverInput, before: ReceiverState, now_s: float) -> None:
        if what is ReceiverInput.SUCCESSOR:
            reason = FollowReason.SUCCESSION
        elif before is ReceiverState.CLOSED:
            reason = FollowReason.AFTER_SHUTDOWN
        elif before is ReceiverState.INTERRUPTED and self.epoch:
            reason = FollowReason.AFTER_SILENCE
        else:
            reason = FollowReason.FIRST_HEARD
        self.events.append(SessionFollowed(epoch=epoch, previous_epoch=self.epoch, reason=reason))
        self.epoch = epoch
        self._followed_since_s = now_s
        self._conflict_raised_s = None
        if self._rival_epoch <= epoch:
            self._forget_rival()

    def _heard_rival(self, epoch: int, now_s: float) -> None:
        self._rival_epoch = epoch
        self._rival_heard_s = now_s

    def _raise_conflict(self, now_s: float) -> None:
        raised = self._conflict_raised_s
        if not self._conflict and (raised is None or now_s >= raised + self.interruption_timeout_s):
            self._conflict = True
            self._conflict_raised_s = now_s  # a rival that comes and goes must not flood anybody (GC-LIM-3)
            self.events.append(ConflictDetected(epoch=self.epoch, rival_epoch=self._rival_epoch))

    def _forget_rival(self) -> None:
        if self._conflict:
            self.events.append(ConflictCleared(rival_epoch=self._rival_epoch))
        self._conflict = False
        self._rival_heard_s = None
