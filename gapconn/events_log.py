"""What happened on a link, told once: in the log at the right level, in counters, and on the status page."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

import attrs
from structlog.typing import FilteringBoundLogger

from gapconn.journal import Journal
from gapconn.protocol.envelope import Copy, Span
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
from gapconn.protocol.registry import DropReason, LossCause
from gapconn.ranges import Range
from gapconn.store.spool import Damage

RECENT_MAX = 100
"""Entries that the status page shows."""

GATHER_S = 1.0
"""Losses are gathered for so long and told as one entry: a storm of losses must not become a storm of logs."""

KINDS_MAX = 1_000
"""Kinds of losses gathered at the same time; with more, they are told at once."""

RANGES_MAX = 50
"""Ranges that one entry names. Beyond it the last one is widened, and the entry says so."""


STATE_ALARMS = ("state_disk_full", "state_failed")


@attrs.define
class _Gathered:
    """Losses of one kind that were not told yet."""

    level: str
    count: int = 0
    ranges: list[list[int]] = attrs.field(factory=list)
    """[first, last], both included."""
    widened: bool = False

    def add(self, first: int, last: int) -> None:
        if self.ranges and first == self.ranges[-1][1] + 1:
            self.ranges[-1][1] = last
        elif len(self.ranges) < RANGES_MAX:
            self.ranges.append([first, last])
        else:
            self.ranges[-1] = [min(first, self.ranges[-1][0]), max(last, self.ranges[-1][1])]
            self.widened = True


class EventLog:
    """Logs and counts what the receiving half and the sink report.

    Alarms and sessions are told at once; losses, which may come by the thousand, once in `GATHER_S` by kind and with
    their places.

    Attributes:
        alarms: What is wrong now, by name: shown by `/health` until it clears.
        recent: The last entries, newest last, as they were logged.
        refused: Messages that arrived and could not be handed over, by cause.
        refused_records: The records in them.
        sink_losses: Losses that the sink reported, by reason.
        duplicates: Records that were dropped because they had been delivered before.
        repaired: Records that had been missing, were sent again as repair, and reached the sink.
        late_messages: Messages that had been lost, came late, and had something for the sink.
        late_records: The records in them that went to the sink.
        late_unusable: Late messages of which the sink could not use all: the streams in them were broken off before.
        journal: What is missing; every loss that is told here is in it too.
    """

    def __init__(self, log: FilteringBoundLogger, journal: Journal | None = None) -> None:
        self._log = log
        self.journal = Journal() if journal is None else journal
        self.repaired = 0
        self.late_messages = 0
        self.late_records = 0
        self.late_unusable = 0
        self.alarms: dict[str, str] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self.refused: Counter[str] = Counter()
        self.refused_records = 0
        self.sink_losses: Counter[str] = Counter()
        self.duplicates = 0
        self._spool_alarm = ""
        self._gathered: dict[tuple[str, tuple[tuple[str, Any], ...]], _Gathered] = {}
        self._tell_at_s = 0.0

    def happened(self, event: Event) -> None:
        """Tell `event`, or gather it."""
        match event:
            case SessionFollowed():
                self._tell(
                    "info",
                    "session_followed",
                    epoch=event.epoch,
                    previous_epoch=event.previous_epoch,
                    reason=event.reason.value,
                )
            case SessionEnded():
                self._tell(
                    "info",
                    "session_ended",
                    epoch=event.epoch,
                    messages_sent=event.messages_sent,
                    records_sent=event.records_sent,
                )
            case SessionCutOff():
                self._tell("warning", "session_cut_off", epoch=event.epoch, unknown_from_message=event.next_message)
            case LinkInterrupted():
                self.alarms["link_interrupted"] = (
                    "the link is interrupted: nothing was heard of the ingress for longer than the interruption timeout"
                )
                self._tell("error", "link_interrupted", epoch=event.epoch, silent_s=round(event.silent_s, 3))
            case LinkRestored():
                self.alarms.pop("link_interrupted", None)
                self._tell("info", "link_restored", epoch=event.epoch, silent_s=round(event.silent_s, 3))
            case ConflictDetected():
                where = f" (from {event.rival_from})" if event.rival_from else ""
                self.alarms["conflict"] = (
                    f"two ingresses send on this link: {event.epoch} is followed, {event.rival_epoch}{where} is not; "
                    "stop one of them"
                )
                self._tell(
                    "error",
                    "conflict_detected",
                    epoch=event.epoch,
                    rival_epoch=event.rival_epoch,
                    **_known(rival_from=event.rival_from),
                )
            case ConflictCleared():
                self.alarms.pop("conflict", None)
                self._tell("info", "conflict_cleared", rival_epoch=event.rival_epoch)
            case ForeignLinkDetected():
                self._tell(
                    "error",
                    "foreign_link_detected",
                    link_id=event.link_id,
                    **_known(came_from=event.came_from),
                    remedy="another link's ingress sends to this egress: correct its link.address",
                )
            case UnverifiedDetected() | UnverifiedCleared():
                self._tell_unverified(event)
            case MessagesLost() | RecordsLost() | RecordsMissing():
                self._gather_loss(event)
            case MessageDelivered() | MessageSettled():
                pass  # the normal case, counted in the core
            case _:
                assert_never(event)

    def _tell_unverified(self, event: UnverifiedDetected | UnverifiedCleared) -> None:
        if isinstance(event, UnverifiedCleared):
            self.alarms.pop("unverified", None)
            self._tell("info", "unverified_cleared")
            return
        match event.reason:
            case DropReason.UNKNOWN_KEY:
                what = f"they are sealed with key {event.key_id}, which this egress does not have"
                remedy = "carry the key file of the ingress to this end"
            case DropReason.WRONG_SECURITY_MODE:
                what = "they are not sealed"
                remedy = "set link.security alike at both ends, or find who else sends to this egress"
            case _:
                what = f"the secret of key {event.key_id} is not the same at both ends, or they are forged or damaged"
                remedy = "compare the fingerprints at both ends (gapconn keygen --show FILE), and carry the file anew"
        self.alarms["unverified"] = f"datagrams arrive that say they are of this link, but {what}: {remedy}"
        reason = event.reason.name.lower()
        self._tell("error", "unverified_detected", reason=reason, key_id=event.key_id, remedy=remedy)

    def _gather_loss(self, event: MessagesLost | RecordsLost | RecordsMissing) -> None:
        self.journal.happened(event, _now_ms())
        match event:
            case MessagesLost():
                lost = self._gather("warning", "messages_lost", epoch=event.epoch, cause=event.cause.name.lower())
                lost.count += event.last - event.first + 1
                lost.add(event.first, event.last)
            case RecordsLost():
                lost = self._gather("warning", "records_lost", epoch=event.epoch, cause=event.cause.name.lower())
                lost.count += event.count
                lost.add(event.first, event.first + event.count - 1)
            case RecordsMissing():
                # How many there were is told by records_lost: not every position between need have held a record.
                self._gather("warning", "records_missing", stream=event.stream, partition=event.partition).add(
                    event.first, event.last
                )

    def message_refused(self, message: MessageDelivered, cause: LossCause, why: str) -> None:
        """A message arrived whole and cannot be handed over."""
        self.journal.refused(message, cause, _now_ms())
        if message.late:
            return  # it was counted and told when it was lost, and is lost as before
        name = cause.name.lower()
        self.refused[name] += 1
        self.refused_records += message.record_count
        refused = self._gather("error", "messages_refused", epoch=message.epoch, cause=name, why=why)
        refused.count += 1
        refused.add(message.number, message.number)
        for run in message.runs:
            missing = self._gather("error", "records_refused", stream=run.stream, partition=run.partition, cause=name)
            missing.count += run.count
            missing.add(run.first, run.last)

    def sink_lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        """The sink reports positions that never reach the target."""
        self.journal.sink_lost((stream, partition), first, last, reason, _now_ms())
        self.sink_losses[reason] += 1
        where = {} if partition is None else {"partition": partition}
        lost = self._gather("warning", "sink_lost", stream=stream, **where, reason=reason)
        lost.count += 1
        lost.add(first, last)

    def late_declined(self, message: MessageDelivered) -> None:
        """The sink cannot use what came late: it stays lost."""
        # It is not taken again when it is repeated: what the sink could use of it, it has.
        self.journal.release(message)
        self.late_unusable += 1
        declined = self._gather("warning", "late_unusable", epoch=message.epoch)
        declined.count += 1
        declined.add(message.number, message.number)

    def sink_found(self, *, stream: str, first: int, last: int) -> None:
        """The target has positions after all that the sink had reported as lost."""
        self.journal.found((stream, None), [(first, last)], _now_ms())
        self._gather("info", "sink_found", stream=stream).add(first, last)

    def duplicates_dropped(self, stream: str, partition: int, count: int) -> None:
        """Records were sent again by a restarted ingress, and were dropped."""
        if count:
            self.duplicates += count
            self._gather("info", "duplicates_dropped", stream=stream, partition=partition).count += count

    def spool_resumed(self, *, messages: int, disk_bytes: int, cut_bytes: int) -> None:
        """An earlier life left something in the spool."""
        if cut_bytes:
            self._tell("warning", "spool_end_cut", bytes=cut_bytes)
        if messages:
            self._tell("info", "spool_resumed", messages=messages, disk_bytes=disk_bytes)

    def spool_kept(self, *, messages: int, disk_bytes: int) -> None:
        """This life leaves something in the spool."""
        if messages:
            self._tell("info", "spool_kept", messages=messages, disk_bytes=disk_bytes)

    def spool_share(self, share: float, *, filling: bool, over: bool, messages: int) -> None:
        """So much of `spool.max_bytes` is used; whether that is an alarm, or is certainly none."""
        if filling and "spool_filling" not in self.alarms:
            self._tell("warning", "spool_filling", share=round(share, 3), messages=messages)
        if filling or ("spool_filling" in self.alarms and not over):
            self.alarms["spool_filling"] = f"the spool is filled to {share:.0%}: the sink is slow or away"
        elif "spool_filling" in self.alarms:
            del self.alarms["spool_filling"]
            self._tell("info", "spool_emptying", share=round(share, 3), messages=messages)

    def spool_stuck(self, alarm: str, why: str) -> None:
        """The spool takes nothing now."""
        self.spool_goes_on(told=False)
        self._spool_alarm = alarm
        self.alarms[alarm] = f"the spool takes nothing: {why}"
        if alarm == "spool_full":
            self._tell("error", "spool_full", why=why)
        elif alarm == "spool_disk_full":
            self._tell("error", "spool_disk_full", why=why)
        else:
            self._tell("error", "spool_failed", why=why)

    def spool_goes_on(self, *, told: bool = True) -> None:
        """It takes messages again, or need not."""
        if self.alarms.pop(self._spool_alarm, None) is not None and told:
            self._tell("info", "spool_restored")

    def spool_damaged(self, damage: Damage, epoch: int = 0) -> None:
        """Something in the spool cannot be read any more: it is lost, and told with its place.

        Args:
            damage: What is known of it.
            epoch: Of the session in which it arrived; 0 if that is not known.
        """
        why = f"damaged in the spool, in {damage.segment} at {damage.offset}"
        if damage.known is not None:
            self.message_refused(damage.known.message, LossCause.DAMAGED, why)
            return
        self.journal.unidentified(damage.serials, epoch, LossCause.DAMAGED, _now_ms())
        self.refused[LossCause.DAMAGED.name.lower()] += damage.serials
        self._tell("error", "spool_damaged", messages=damage.serials, segment=damage.segment, offset=damage.offset)

    def state_stuck(self, alarm: str, why: str) -> None:
        """Nothing can be stored of how far it has come, and of what is missing; it goes on, and tries again."""
        told = alarm in self.alarms
        for other in STATE_ALARMS:
            self.alarms.pop(other, None)
        self.alarms[alarm] = f"the state cannot be stored, so a kill now means false losses or duplicates: {why}"
        if told:
            return
        if alarm == "state_disk_full":
            self._tell("error", "state_disk_full", why=why)
        else:
            self._tell("error", "state_failed", why=why)

    def state_goes_on(self) -> None:
        """It is stored again, with all that could not be stored meanwhile."""
        stood = [alarm for alarm in STATE_ALARMS if self.alarms.pop(alarm, None) is not None]
        if stood:
            self._tell("info", "state_restored")

    def spool_not_noted(self, error: str) -> None:
        """How far the sink has come cannot be noted now; it is tried again."""
        self._gather("error", "spool_not_noted", error=error).count += 1

    def spool_not_read(self, error: str) -> None:
        """The spool cannot be read now; it is tried again."""
        self._gather("error", "spool_not_read", error=error).count += 1

    def records_repaired(self, stream: str, partition: int, count: int) -> None:
        """Records that had been missing were sent again, and go to the sink."""
        if count:
            self.repaired += count
            self._gather("info", "records_repaired", stream=stream, partition=partition).count += count

    def repair_waits(self, message: MessageDelivered) -> None:
        """It was read out of the spool: if an earlier life put it there, its claims are not known yet."""
        self.journal.comes(message)

    def accepted(self, epoch: int, number: int, claimed: Mapping[tuple[str, int], tuple[Range, ...]]) -> None:
        """The sink has this message, and with it what was missing."""
        self.journal.came(epoch, number)
        late = self.journal.is_lost(epoch, number)
        if late:
            self.journal.came_late(epoch, number, _now_ms())
        if claimed:
            self.journal.repaired(claimed, _now_ms(), late=late)
        if late:
            self.journal.settle_gone(epoch, _now_ms())

    def accounted(self, epoch: int) -> None:
        """All records of the session that were lost so far have been told."""
        if self.journal.unaccounted:
            self.journal.accounted(epoch, _now_ms())

    def delivered_late(self, records: int) -> None:
        """A message that had been lost goes to the sink with so many records."""
        if records:
            self.late_messages += 1
            self.late_records += records
            self._gather("info", "records_late").count += records

    def source_has_no_more(self, spans: Iterable[Span]) -> None:
        """The source says that these cannot be sent again."""
        for span in spans:
            self.journal.is_gone(span, _now_ms())
            gone = self._gather("error", "records_gone", stream=span.stream, partition=span.partition, reason=span.gone)
            gone.add(span.first, span.last)

    def source_has_no_more_messages(self, copies: Iterable[Copy]) -> None:
        """The source side says that it has these messages no more: they will never come (GC-RPR-10)."""
        for copy in copies:
            self.journal.is_gone_of(copy, _now_ms())
            self._gather("error", "messages_gone", epoch=copy.epoch, reason=copy.gone).add(copy.first, copy.last)

    def close_by_hand(self, numbers: Iterable[int], reason: str) -> None:
        """Somebody wants these entries closed."""
        self.journal.close_by_hand(numbers, reason, _now_ms())

    def tell_journal(self) -> None:
        """Tell which entries of the journal were closed, and which were forgotten because it is full."""
        journal = self.journal
        closed, journal.closed = journal.closed, []
        for entry in closed:
            if not entry.open:
                self._tell("info", "gap_closed", entry=entry.number, outcome=entry.outcome, reason=entry.reason)
        forgotten, journal.forgotten = journal.forgotten, []
        for entry in forgotten:
            self._tell(
                "error",
                "gap_forgotten",
                entry=entry.number,
                epoch=entry.epoch,
                messages=list(entry.messages),
                messages_unidentified=entry.messages_unidentified,
                missing=[(*place, list(ranges)) for place, ranges in entry.missing.items()],
            )

    def tell_gathered(self, now_s: float) -> None:
        """Tell what was gathered, if it is time."""
        if now_s >= self._tell_at_s and (self._gathered or self.journal.closed or self.journal.forgotten):
            self._tell_at_s = now_s + GATHER_S
            self.tell_all()

    def tell_all(self) -> None:
        """Tell what was gathered, now."""
        self.tell_journal()
        gathered, self._gathered = self._gathered, {}
        for (name, kind), what in gathered.items():
            facts: dict[str, Any] = dict(kind)
            if what.count:
                facts["count"] = what.count
            if what.ranges:
                facts["ranges"] = what.ranges
            if what.widened:
                facts["ranges_widened"] = True
            self._tell(what.level, name, **facts)

    def _gather(self, level: str, name: str, **kind: Any) -> _Gathered:
        if len(self._gathered) >= KINDS_MAX:
            self.tell_all()
        return self._gathered.setdefault((name, tuple(kind.items())), _Gathered(level))

    def _tell(self, level: str, name: str, **facts: Any) -> None:
        getattr(self._log, level)(name, **facts)
        self.recent.append({"time": time.time(), "level": level, "event": name, **facts})


def _known(**facts: str) -> dict[str, str]:
    return {name: fact for name, fact in facts.items() if fact}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
