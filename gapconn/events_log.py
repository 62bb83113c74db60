"""What happened on a link, told once: in the log at the right level, in counters, and on the status page."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any, assert_never

from structlog.typing import FilteringBoundLogger

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
    SessionEnded,
    SessionFollowed,
)
from gapconn.protocol.registry import LossCause

RECENT_MAX = 100
"""Events that the status page shows."""


class EventLog:
    """Logs and counts what the receiving half and the sink report.

    Attributes:
        alarms: What is wrong now, by name: shown by `/health` until it clears.
        recent: The last events, newest last, as they were logged.
        refused: Messages that arrived and could not be handed over, by cause.
        sink_losses: Losses that the sink reported, by reason.
        duplicates: Records that were dropped because they had been delivered before.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self.alarms: dict[str, str] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self.refused: Counter[str] = Counter()
        self.refused_records = 0
        self.sink_losses: Counter[str] = Counter()
        self.duplicates = 0

    def happened(self, event: Event) -> None:
        """Tell `event`."""
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
            case LinkInterrupted():
                self.alarms["link_interrupted"] = (
                    "the link is interrupted: nothing was heard of the ingress for longer than the interruption timeout"
                )
                self._tell("error", "link_interrupted", epoch=event.epoch, silent_s=round(event.silent_s, 3))
            case LinkRestored():
                self.alarms.pop("link_interrupted", None)
                self._tell("info", "link_restored", epoch=event.epoch, silent_s=round(event.silent_s, 3))
            case ConflictDetected():
                self.alarms["conflict"] = (
                    f"two ingresses send on this link: {event.epoch} is followed, {event.rival_epoch} is not; "
                    "stop one of them"
                )
                self._tell("error", "conflict_detected", epoch=event.epoch, rival_epoch=event.rival_epoch)
            case ConflictCleared():
                self.alarms.pop("conflict", None)
                self._tell("info", "conflict_cleared", rival_epoch=event.rival_epoch)
            case ForeignLinkDetected():
                self._tell(
                    "error",
                    "foreign_link_detected",
                    link_id=event.link_id,
                    remedy="another link's ingress sends to this egress: correct its link.address",
                )
            case MessagesLost():
                self._tell(
                    "warning",
                    "messages_lost",
                    epoch=event.epoch,
                    first=event.first,
                    last=event.last,
                    count=event.last - event.first + 1,
                    cause=event.cause.name.lower(),
                )
            case RecordsLost():
                self._tell(
                    "warning", "records_lost", epoch=event.epoch, count=event.count, cause=event.cause.name.lower()
                )
            case RecordsMissing():
                self._tell(
                    "warning",
                    "records_missing",
                    stream=event.stream,
                    partition=event.partition,
                    first=event.first,
                    last=event.last,
                )
            case MessageDelivered():
                pass  # the normal case, counted in the core
            case _:
                assert_never(event)

    def message_refused(self, message: MessageDelivered, cause: LossCause, why: str) -> None:
        """A message arrived whole and cannot be handed over."""
        self.refused[cause.name.lower()] += 1
        self.refused_records += message.record_count
        self._tell(
            "error",
            "message_refused",
            epoch=message.epoch,
            message=message.number,
            records=message.record_count,
            missing=[[run.stream, run.partition, run.first, run.last] for run in message.runs],
            cause=cause.name.lower(),
            why=why,
        )

    def sink_lost(self, *, stream: str, first: int, last: int, reason: str) -> None:
        """The sink reports positions that never reach the target."""
        self.sink_losses[reason] += 1
        self._tell("warning", "sink_lost", stream=stream, first=first, last=last, reason=reason)

    def duplicates_dropped(self, stream: str, partition: int, count: int) -> None:
        """Records were sent again by a restarted ingress, and were dropped."""
        if count:
            self.duplicates += count
            self._tell("info", "duplicates_dropped", stream=stream, partition=partition, count=count)

    def _tell(self, level: str, name: str, **facts: Any) -> None:
        getattr(self._log, level)(name, **facts)
        self.recent.append({"time": time.time(), "level": level, "event": name, **facts})
