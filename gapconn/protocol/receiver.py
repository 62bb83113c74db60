"""The receiving half of a link: bursts of datagrams and time in, messages and events out."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from gapconn.errors import LocalProtocolError
from gapconn.protocol.accounts import SessionAccounts
from gapconn.protocol.counters import ReceiverCounters
from gapconn.protocol.events import (
    ConflictDetected,
    Event,
    FollowReason,
    ForeignLinkDetected,
    LinkInterrupted,
    SessionCutOff,
    SessionEnded,
    SessionFollowed,
    UnverifiedCleared,
    UnverifiedDetected,
)
from gapconn.protocol.fec import Codec, NumpyCodec
from gapconn.protocol.follower import Follower
from gapconn.protocol.holes import Holes
from gapconn.protocol.progress import Progress
from gapconn.protocol.protection import CHECKSUM, VERIFIED, Verifier, runs_of_rows
from gapconn.protocol.reassembler import Ahead, Reassembler
from gapconn.protocol.registry import HEADER_BYTES, MAGIC, VERSION, DatagramType, DropReason, Flag, LossCause
from gapconn.protocol.security import Keys, Opener
from gapconn.protocol.sequence import SequenceWindow
from gapconn.protocol.states import ReceiverState
from gapconn.protocol.strangers import Strangers
from gapconn.protocol.wire import Announcement, Burst, Header, Layout
from gapconn.ranges import Range, RangeSet


@attrs.frozen(kw_only=True)
class ReceiverSettings:
    """What an egress is configured to accept."""

    link_id: int
    interruption_timeout_s: float = 3.0
    """Until a session announces its own (GC-TIME-2)."""
    hold_s: float = 0.2
    """How long a missing message is waited for (GC-DLV-8)."""
    available: bool = False
    """Deliver each message as soon as it is whole, and not in order (GC-DLV-35)."""
    reassembly_bytes_max: int = 64 << 20
    message_bytes_max: int = 16 << 20
    keys: Keys | None = None
    """Secrets to open datagrams with; None for security mode `none`."""


SINGLY_MAX = 2
"""Up to so many datagrams of a burst are looked at one by one: to treat them as a matrix takes longer."""
_KNOWN_TYPES = frozenset(DatagramType)
_UNVERIFIED = frozenset({DropReason.WRONG_SECURITY_MODE, DropReason.UNKNOWN_KEY, DropReason.BAD_CHECK})
"""Reasons to drop a datagram of a sealed link for not being what it says."""
_UNREADABLE = _UNVERIFIED | {
    DropReason.TOO_SHORT,
    DropReason.BAD_MAGIC,
    DropReason.UNSUPPORTED_VERSION,
    DropReason.UNKNOWN_TYPE,
    DropReason.MALFORMED,
}
"""Reasons to drop a datagram before its sequence is looked at, though it may be one of the followed session."""
_RIVAL = frozenset({DropReason.CONFLICT, DropReason.STALE_SESSION})
_SEALED = int(Flag.SEALED)  # operators of enums take longer than the rest of the line


class LinkReceiver:
    """Takes in whatever arrives, follows one session, and says what became of each message.

    Every datagram is either used or counted under one drop reason (GC-MOD-5). Time is monotonic, in seconds.

    Args:
        settings: What the egress is configured to accept.
        now_s: The time.
        resume: The stored state of an earlier life, if there is one.
        codec: Rebuilds lost symbols.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        now_s: float,
        resume: Progress | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.settings = settings
        self.counters = ReceiverCounters()
        self.codec = codec or NumpyCodec()
        self.heard_from = ""
        """The address of what was heard last of the session that has the link, as its datagrams say it."""
        self.strangers = Strangers()
        """Who sent what was dropped."""
        self._came_from = ""
        self._holes = Holes()
        self._now_s = now_s
        self._events: list[Event] = []
        self._opener: Opener | None = None
        self._verifier: Verifier = CHECKSUM
        if settings.keys is not None:
            self._verifier = self._opener = Opener(link_id=settings.link_id, keys=settings.keys)
        self._overhead_bytes = HEADER_BYTES + self._verifier.trailer_bytes
        self._unverified_heard_s: float | None = None
        self.key_id = 0
        """The key that sealed what was heard last of the session that has the link; 0 if it was not sealed."""
        self._resume = resume
        self._joined = False
        self._follower = Follower(
            followed_epoch=resume.epoch if resume else 0,
            interruption_timeout_s=settings.interruption_timeout_s,
            now_s=now_s,
        )
        self._accounts = SessionAccounts(self.counters, self._events, resume.positions if resume else None)
        """Of the session whose messages are being reassembled: the follower is ahead while an old one is settled."""
        self._window = SequenceWindow()
        self._reassembler = self._new_reassembler(0)
        self._ended = False
        self._predecessor_epoch = 0
        """The session followed before this one, until this one has said which one it names; else 0."""
        self._foreign_reported_s: float | None = None

    # -- what the owner may ask ------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The followed session; 0 if there is none."""
        return self._follower.epoch

    @property
    def state(self) -> ReceiverState:
        """Where the followed session is."""
        return self._follower.state

    @property
    def conflict(self) -> bool:
        """Whether two ingresses are heard."""
        return self._follower.conflict

    @property
    def unverified(self) -> bool:
        """Whether datagrams are heard that cannot be verified, and the link is not."""
        return self._unverified_heard_s is not None

    def use_keys(self, keys: Keys) -> None:
        """Open what arrives from now on with these keys, and no others (GC-SEC-4).

        Raises:
            LocalProtocolError: the link is not sealed.
        """
        if self._opener is None:
            raise LocalProtocolError("a link in security mode none has no keys")
        self._opener.use(keys)

    @property
    def datagrams_missed(self) -> int:
        """Datagrams of all followed sessions that were sent and have not arrived (GC-DLV-12)."""
        return self.counters.datagrams_missed + self._window.missing

    @property
    def repeats_not_needed(self) -> int:
        """Source symbols that came and were not needed: of repeats, or behind repair symbols."""
        return self.counters.repeats_not_needed + self._reassembler.repeats_not_needed

    @property
    def lost_forgotten(self) -> int:
        """Lost messages that were too many to be taken when they are repeated (GC-DLV-32)."""
        return self.counters.lost_forgotten + self._reassembler.lost_forgotten

    @property
    def missed_unreadable(self) -> int:
        """Of the datagrams missed, those that arrived damaged."""
        return min(self._holes.unreadable, self.datagrams_missed)

    @property
    def missed_here(self) -> int:
        """Of the datagrams missed, those that reached this host, which dropped them unread. No datagram is both."""
        return min(self._holes.dropped_here, self.datagrams_missed - self.missed_unreadable)

    @property
    def session_epoch(self) -> int:
        """The session whose messages are being reassembled; 0 if none was heard."""
        return self._accounts.epoch

    @property
    def announcement(self) -> Announcement | None:
        """What that session said last of itself."""
        return self._accounts.announcement

    @property
    def messages_known(self) -> int:
        """Messages of the session that are known to have been sent."""
        return self._reassembler.known_sent

    @property
    def accounted(self) -> bool:
        """Whether the records of all messages settled so far have been seen, or reported as lost."""
        return self.announcement is not None and self.announcement.messages_sent == self._reassembler.next_message

    @property
    def records_known(self) -> int:
        """Records of the session that are known to have been sent."""
        return self._accounts.records_known

    @property
    def ended(self) -> bool:
        """Whether the session's Shutdown was heard."""
        return self._ended

    @property
    def held_bytes(self) -> int:
        """Memory of incomplete and waiting messages."""
        return self._reassembler.held_bytes

    @property
    def held_messages(self) -> int:
        """Incomplete and waiting messages."""
        return self._reassembler.held_messages

    @property
    def ahead_messages(self) -> int:
        """Messages that were delivered before earlier ones that are still waited for."""
        return self._reassembler.ahead_messages

    @property
    def ahead_bytes(self) -> int:
        """Memory of what is remembered of them."""
        return self._reassembler.ahead_bytes

    @property
    def late_bytes(self) -> int:
        """Memory of what has arrived of lost messages."""
        return self._reassembler.late_bytes

    @property
    def late_messages(self) -> int:
        """Lost messages of which something has arrived."""
        return self._reassembler.late_messages

    @property
    def messages_mendable(self) -> int:
        """Lost messages of the session that are taken when they are repeated."""
        return self._reassembler.lost.count

    def miss(self, epoch: int, number: int) -> None:
        """This message was delivered, and its owner could not keep it: take it when it is repeated (GC-DLV-40)."""
        if epoch == self._accounts.epoch:
            self._reassembler.miss(number)
        elif not self._joined and self._resume is not None and epoch == self._resume.epoch:
            lost = tuple(RangeSet([*self._resume.lost, (number, number)]))
            self._resume = attrs.evolve(self._resume, lost=lost)

    @property
    def next_message(self) -> int:
        """Number of the next message that is not settled."""
        return self._reassembler.next_message

    @property
    def next_record(self) -> int:
        """Records of the session that are settled."""
        return self._accounts.next_record

    @property
    def interruption_timeout_s(self) -> float:
        """Silence after which the link is interrupted: the egress's own, or what the followed session announces."""
        return self._follower.interruption_timeout_s

    def silent_s(self, now_s: float) -> float:
        """Seconds since the followed session was heard."""
        return self._follower.silent_s(now_s)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events = self._events.copy()
        self._events.clear()  # the accounts add to the same list
        return events

    # -- datagrams -------------------------------------------------------------------------------------------

    def receive(self, burst: Burst, now_s: float) -> None:
        """Take in the datagrams of a burst. They are copied where needed: the slab may be reused at once."""
        self.handle_timeout(now_s)  # what was due before this burst came, comes before it (GC-TIME-3)
        now_s = self._now_s
        count = burst.count
        self._came_from = burst.came_from
        if burst.dropped_before:
            self._holes.note_dropped(burst.dropped_before)
        self.counters.datagrams += count
        self.counters.bytes += count * burst.datagram_bytes
        if burst.datagram_bytes < self._overhead_bytes:
            self._drop_stranger(DropReason.TOO_SHORT, count, 0, now_s)
            return
        if count <= SINGLY_MAX:
            datagrams, size = burst.bytes, burst.datagram_bytes
            for start in range(0, count * size, size):
                self._receive_single(datagrams[start : start + size], now_s)
            return
        rows = burst.slab.layout(burst.datagram_bytes, count, burst.offset, trailer_bytes=self._verifier.trailer_bytes)
        payloads, reasons = self._verifier.verify(rows, count)
        for first, stop in runs_of_rows(rows, count, reasons):
            if reasons is None or reasons[first] == VERIFIED:
                self._receive_rows(rows, payloads, first, stop, now_s)
            else:
                self._refuse(rows.header(first), DropReason(int(reasons[first])), stop - first, now_s)

    def _receive_single(self, datagram: memoryview, now_s: float) -> None:
        """Take in a datagram without making a matrix of it: heartbeats, small messages, and all that is not ours."""
        header = Header.unpack(datagram)
        payload, reason = self._verifier.verify_one(datagram)
        if reason is not None:
            self._refuse(header, reason, 1, now_s)
        else:
            self._receive_run(header, np.frombuffer(payload, np.uint8)[np.newaxis], now_s)

    def _receive_rows(self, rows: Layout, payloads: NDArray[np.uint8], first: int, stop: int, now_s: float) -> None:
        """Take in verified rows that continue each other: they differ only in sequence and symbol, each one more."""
        header = rows.header(first)
        if header.type == DatagramType.DATA and header.well_formed(payloads.shape[1], stop - first):
            self._receive_run(header, payloads[first:stop], now_s)
        else:  # each has to be looked at: some may be well formed
            for row in range(first, stop):
                self._receive_run(rows.header(row), payloads[row : row + 1], now_s)

    def _receive_run(self, header: Header, payloads: NDArray[np.uint8], now_s: float) -> None:
        """Take in datagrams of which `header` is the first one's; more than one only if they are well-formed Data."""
        reason = self._refusal(header)
        if reason is not None:
            self._refuse(header, reason, len(payloads), now_s)
        elif header.type != DatagramType.DATA:
            self._receive_control(header, bytes(payloads[0]), now_s)
        elif header.well_formed(payloads.shape[1], len(payloads)):
            self._receive_data(header, payloads, now_s)
        else:
            self._drop_stranger(DropReason.MALFORMED, 1, 0, now_s)
        self._collect()  # however datagrams are grouped to bursts, events come in the same order

    def _refuse(self, header: Header, reason: DropReason, count: int, now_s: float) -> None:
        """Drop datagrams that nothing may be believed of; `header` is the first one's."""
        foreign = reason is DropReason.FOREIGN_LINK
        self._drop_stranger(reason, count, header.link_id if foreign else 0, now_s)
        if foreign:
            self._note_foreign(header.link_id, now_s)
        elif reason in _UNVERIFIED and self._opener is not None:
            self._note_unverified(header, reason, now_s)

    def _refusal(self, header: Header) -> DropReason | None:
        """Why a verified datagram is not taken in, by its header alone (GC-WIRE-3, GC-WIRE-4, GC-SESS-12)."""
        if header.magic != MAGIC:
            return DropReason.BAD_MAGIC
        if header.version != VERSION:
            return DropReason.UNSUPPORTED_VERSION
        if (header.flags ^ self._verifier.flags) & _SEALED:
            return DropReason.WRONG_SECURITY_MODE
        if header.link_id != self.settings.link_id:
            return DropReason.FOREIGN_LINK
        if header.type not in _KNOWN_TYPES or header.flags != self._verifier.flags:
            return DropReason.UNKNOWN_TYPE
        return None

    def _receive_control(self, header: Header, payload: bytes, now_s: float) -> None:
        if not header.well_formed(len(payload)):
            self._drop_stranger(DropReason.MALFORMED, 1, 0, now_s)
            return
        announcement = Announcement.unpack(payload)
        if not announcement.well_formed(header):
            self._drop_stranger(DropReason.MALFORMED, 1, 0, now_s)
            return
        if not self._admit(header, announcement, now_s):
            return
        self._learn(announcement, now_s)
        if header.type == DatagramType.SHUTDOWN and not self._ended:
            self._ended = True
            self._events.append(
                SessionEnded(
                    epoch=header.epoch,
                    messages_sent=announcement.messages_sent,
                    records_sent=announcement.records_sent,
                )
            )

    def _receive_data(self, header: Header, payloads: NDArray[np.uint8], now_s: float) -> None:
        for begin, end in self._admit(header, None, now_s, len(payloads)):
            part = header if begin == 0 else attrs.evolve(header, symbol=header.symbol + begin)
            unused, why = self._reassembler.add(part, payloads[begin:end], now_s)
            if why is not None:
                self._drop(why, unused)

    def _admit(
        self, header: Header, announcement: Announcement | None, now_s: float, count: int = 1
    ) -> list[tuple[int, int]]:
        """Which of these datagrams are to be taken in, as stretches (from, to); the others are dropped.

        What the followed session sent before is no sign that it lives: the sequence is looked at first (GC-SESS-16).
        Of any other session the sequence is not known; it is looked at when the session has got the link.
        """
        current = self._joined and header.epoch == self._accounts.epoch
        new = self._take_sequence(header.sequence, count) if current else []
        if current and not new:
            return []
        reason, taken = self._follower.hear(
            DatagramType(header.type), header.epoch, announcement.previous_epoch if announcement else None, now_s
        )
        if reason is not None:
            self._drop_stranger(reason, count, header.epoch, now_s)
            return []
        self.key_id = header.key_id
        self.heard_from = self._came_from
        if self._unverified_heard_s is not None:
            self._clear_unverified()
        if taken or not self._joined:
            self._begin(header, announcement, taken=taken)
        return new if current else self._take_sequence(header.sequence, count)

    def _take_sequence(self, first: int, count: int) -> list[tuple[int, int]]:
        """Take these numbers in; the stretches of them that are new. The others are dropped."""
        new = []
        pending = self._holes.pending
        highest, missing = (self._window.highest, self._window.missing) if pending else (0, 0)
        for begin, end, reason in self._window.take(first, count):
            if reason is None:
                new.append((begin, end))
            else:
                self._drop(reason, end - begin)
        if pending and self._window.highest > highest:
            self._holes.shown(max(0, self._window.missing - missing))
        return new

    def _begin(self, header: Header, announcement: Announcement | None, *, taken: bool) -> None:
        """Start on a session, a new one or that of the stored state; the old one is settled before (GC-SESS-10)."""
        joining = not self._joined
        if not joining:
            self._reassembler.settle_known(LossCause.SESSION_ENDED)
            self._collect_settled()
            self._accounts.enter_announced(self._reassembler.next_message)
        if taken:
            self._leave_predecessor()
        self._events += self._take_follower_events()
        self.counters.sessions += 1
        self.counters.datagrams_missed += self._window.missing
        self.counters.repeats_not_needed += self._reassembler.repeats_not_needed
        self.counters.lost_forgotten += self._reassembler.lost_forgotten
        next_message = 0
        lost: tuple[Range, ...] = ()
        ahead: tuple[Ahead, ...] = ()
        next_record = joined_at = 0
        if not taken and self._resume is not None:
            next_message, next_record = self._resume.next_message, self._resume.next_record
            lost, joined_at = self._resume.lost, self._resume.joined_at
            ahead = self._resume.ahead
            self._events.append(
                SessionFollowed(epoch=header.epoch, previous_epoch=header.epoch, reason=FollowReason.RESUMED)
            )
        self._joined = True
        self._ended = False
        self._follower.use_timeout(self.settings.interruption_timeout_s, self._now_s)
        self._window = SequenceWindow(header.sequence if joining else 0)
        self._reassembler = self._new_reassembler(next_message, lost, ahead)
        if joining:
            # What was sent before the first datagram heard is not a loss of the path (GC-DLV-11).
            sent_before = announcement.messages_sent if announcement else header.message
            cause = LossCause.WHILE_AWAY if self._resume else LossCause.BEFORE_JOIN
            self._reassembler.settle_below(sent_before, cause)
            if cause is LossCause.BEFORE_JOIN:
                next_message = joined_at = sent_before
        self._accounts.open(header.epoch, next_record=next_record, joined_at=joined_at, known_from=next_message)

    def _leave_predecessor(self) -> None:
        """Report what is known of the session that was followed before, in this life or as stored (GC-SESS-14)."""
        if self._joined:
            epoch, next_message, ended = self._accounts.epoch, self._reassembler.next_message, self._ended
        elif self._resume is not None:
            stored = self._resume
            epoch, next_message, ended = stored.epoch, max(stored.next_message, stored.messages_known), stored.ended
            if next_message > stored.next_message:
                self._accounts.lose_messages(epoch, stored.next_message, next_message - 1, LossCause.WHILE_AWAY)
            self._accounts.lose_records(epoch, stored.next_record, stored.records_known, LossCause.WHILE_AWAY)
        else:
            return
        self._predecessor_epoch = epoch
        if not ended:
            self._events.append(SessionCutOff(epoch=epoch, next_message=next_message))

    def _learn(self, announcement: Announcement, now_s: float) -> None:
        if 0 < self._predecessor_epoch < announcement.previous_epoch:
            self._events.append(SessionCutOff(epoch=announcement.previous_epoch, next_message=0))
        self._predecessor_epoch = 0
        self._accounts.learn(announcement)
        self._follower.use_timeout(announcement.interruption_timeout_ms / 1000, now_s)
        self._reassembler.learn(announcement.messages_sent, now_s)

    def _note_foreign(self, link_id: int, now_s: float) -> None:
        last = self._foreign_reported_s
        if last is None or now_s - last >= self._follower.interruption_timeout_s:
            self._foreign_reported_s = now_s
            self.counters.foreign_links += 1
            self._events.append(ForeignLinkDetected(link_id=link_id, came_from=self._came_from))

    def _note_unverified(self, header: Header, reason: DropReason, now_s: float) -> None:
        """Tell of datagrams that cannot be verified when they may be why the link is not heard (GC-SEC-8).

        Not while it is: then they are only counted, so that a forger cannot raise an alarm on a link that works.
        """
        if self._follower.state is ReceiverState.FOLLOWING:
            return
        if self._unverified_heard_s is None:
            self.counters.unverified += 1
            self._events.append(UnverifiedDetected(reason=reason, key_id=header.key_id))
        self._unverified_heard_s = now_s

    def _clear_unverified(self) -> None:
        self._unverified_heard_s = None
        self._events.append(UnverifiedCleared())

    def _unverified_until_s(self) -> float | None:
        heard_s = self._unverified_heard_s
        return None if heard_s is None else heard_s + self._follower.interruption_timeout_s

    # -- time ------------------------------------------------------------------------------------------------

    def next_deadline_s(self) -> float | None:
        """When `handle_timeout` has something to do; None when never."""
        times = (
            self._follower.next_deadline_s(),
            self._reassembler.next_deadline_s(),
            self._unverified_until_s(),
        )
        return min((t for t in times if t is not None), default=None)

    def handle_timeout(self, now_s: float) -> None:
        """Do what is due: give up missing messages, notice silence."""
        now_s = self._clock(now_s)
        self._follower.handle_timeout(now_s)
        unverified_until_s = self._unverified_until_s()
        if unverified_until_s is not None and now_s >= unverified_until_s:
            self._clear_unverified()
        self._reassembler.expire(now_s)
        self._collect()

    def close(self, now_s: float) -> None:
        """The egress stops: deliver what is complete. What is still incomplete is left to the next life to report."""
        self._clock(now_s)
        self._reassembler.settle_complete(LossCause.GAP)
        self._collect()

    def _clock(self, now_s: float) -> float:
        """Time never runs backwards here (GC-TIME-4)."""
        self._now_s = max(self._now_s, now_s)
        return self._now_s

    # -- what became of it -----------------------------------------------------------------------------------

    def _collect(self) -> None:
        if self._follower.events:
            self._events += self._take_follower_events()
        if self._reassembler.settled:
            self._collect_settled()
        self._accounts.enter_announced(self._reassembler.next_message)

    def _take_follower_events(self) -> list[Event]:
        events, self._follower.events = self._follower.events, []
        self.counters.interruptions += sum(isinstance(event, LinkInterrupted) for event in events)
        for index, event in enumerate(events):
            if isinstance(event, ConflictDetected):
                self.counters.conflicts += 1
                rival_from = self.strangers.address_of(_RIVAL, event.rival_epoch)
                events[index] = attrs.evolve(event, rival_from=rival_from)
        return events

    def _collect_settled(self) -> None:
        settled, self._reassembler.settled = self._reassembler.settled, []
        self._accounts.enter(settled)

    def _drop_stranger(self, reason: DropReason, count: int, identity: int, now_s: float) -> None:
        """Drop datagrams that are not of the followed session, or of which that cannot be said."""
        self._drop(reason, count)
        self.strangers.heard(reason, identity, self._came_from, count, now_s)
        if reason in _UNREADABLE:
            self._holes.note_unreadable(count)

    def _drop(self, reason: DropReason, count: int = 1) -> None:
        self.counters.dropped[reason] += count

    def _new_reassembler(
        self, next_message: int, lost: tuple[Range, ...] = (), ahead: tuple[Ahead, ...] = ()
    ) -> Reassembler:
        return Reassembler(
            next_message=next_message,
            lost=lost,
            available=self.settings.available,
            ahead=ahead,
            bytes_max=self.settings.reassembly_bytes_max,
            message_bytes_max=self.settings.message_bytes_max,
            hold_s=self.settings.hold_s,
            codec=self.codec,
        )
