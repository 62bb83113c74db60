"""What happened is told once, at the right level, and a storm of it stays readable."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gapconn import events_log
from gapconn.events_log import GATHER_S, KINDS_MAX, RANGES_MAX, RECENT_MAX, EventLog
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import (
    ConflictCleared,
    ConflictDetected,
    Event,
    FollowReason,
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


@pytest.fixture
def events() -> EventLog:
    return EventLog(structlog.get_logger())


def message(number: int, *runs: Run) -> MessageDelivered:
    return MessageDelivered(
        epoch=7,
        number=number,
        first_record=0,
        record_count=sum(run.count for run in runs),
        runs=list(runs),
        already_delivered={},
        positions={},
        body=memoryview(b"."),
    )


def lost(first: int, last: int, cause: LossCause = LossCause.GAP) -> MessagesLost:
    return MessagesLost(epoch=7, first=first, last=last, cause=cause)


AT_ONCE: list[tuple[Event, dict[str, Any]]] = [
    (
        SessionFollowed(epoch=7, previous_epoch=6, reason=FollowReason.SUCCESSION),
        {"log_level": "info", "event": "session_followed", "epoch": 7, "previous_epoch": 6},
    ),
    (
        SessionEnded(epoch=7, messages_sent=3, records_sent=30),
        {"log_level": "info", "event": "session_ended", "messages_sent": 3, "records_sent": 30},
    ),
    (
        LinkInterrupted(epoch=7, silent_s=3.00049),
        {"log_level": "error", "event": "link_interrupted", "epoch": 7, "silent_s": 3.0},
    ),
    (LinkRestored(epoch=7, silent_s=9.5), {"log_level": "info", "event": "link_restored", "silent_s": 9.5}),
    (
        ConflictDetected(epoch=7, rival_epoch=8),
        {"log_level": "error", "event": "conflict_detected", "epoch": 7, "rival_epoch": 8},
    ),
    (ConflictCleared(rival_epoch=8), {"log_level": "info", "event": "conflict_cleared", "rival_epoch": 8}),
    (ForeignLinkDetected(link_id=5), {"log_level": "error", "event": "foreign_link_detected", "link_id": 5}),
]


@pytest.mark.parametrize(("event", "entry"), AT_ONCE, ids=lambda value: type(value).__name__)
def test_sessions_and_alarms_are_told_at_once(events: EventLog, event: Event, entry: dict[str, Any]) -> None:
    with capture_logs() as logs:
        events.happened(event)
    (told,) = logs
    assert entry.items() <= told.items()
    (recent,) = events.recent
    assert (recent["event"], recent["level"]) == (entry["event"], entry["log_level"])
    assert recent["time"] > 1e9


def test_a_delivered_message_is_no_news(events: EventLog) -> None:
    with capture_logs() as logs:
        events.happened(message(0))
        events.tell_all()
    assert logs == []


@pytest.mark.parametrize(
    ("alarm", "cleared", "name", "says"),
    [
        (LinkInterrupted(epoch=7, silent_s=3), LinkRestored(epoch=7, silent_s=4), "link_interrupted", "interrupted"),
        (
            ConflictDetected(epoch=7, rival_epoch=8),
            ConflictCleared(rival_epoch=8),
            "conflict",
            "7 is followed, 8 is not; stop one",
        ),
    ],
)
def test_an_alarm_stands_until_it_is_cleared(
    events: EventLog, alarm: Event, cleared: Event, name: str, says: str
) -> None:
    events.happened(cleared)
    assert events.alarms == {}
    events.happened(alarm)
    assert says in events.alarms[name]
    events.happened(cleared)
    assert events.alarms == {}


def test_losses_are_gathered_and_told_with_their_places(events: EventLog) -> None:
    with capture_logs() as logs:
        for first in range(0, 100, 10):
            events.happened(lost(first, first + 4))
        events.happened(lost(200, 299, LossCause.WHILE_AWAY))
        events.happened(RecordsLost(epoch=7, first=0, count=500, cause=LossCause.GAP))
        events.happened(RecordsLost(epoch=7, first=500, count=7, cause=LossCause.GAP))
        events.happened(RecordsMissing(epoch=7, stream="orders", partition=1, first=10, last=19))
        events.happened(RecordsMissing(epoch=7, stream="orders", partition=1, first=20, last=29))
        events.happened(RecordsMissing(epoch=7, stream="orders", partition=2, first=0, last=0))
        assert logs == []
        events.tell_all()
    told = [{key: value for key, value in entry.items() if key != "log_level"} for entry in logs]
    assert {entry["log_level"] for entry in logs} == {"warning"}
    assert told == [
        {
            "event": "messages_lost",
            "epoch": 7,
            "cause": "gap",
            "count": 50,
            "ranges": [[first, first + 4] for first in range(0, 100, 10)],
        },
        {"event": "messages_lost", "epoch": 7, "cause": "while_away", "count": 100, "ranges": [[200, 299]]},
        {"event": "records_lost", "epoch": 7, "cause": "gap", "count": 507, "ranges": [[0, 506]]},
        {"event": "records_missing", "stream": "orders", "partition": 1, "ranges": [[10, 29]]},
        {"event": "records_missing", "stream": "orders", "partition": 2, "ranges": [[0, 0]]},
    ]


def test_what_was_gathered_is_told_once_and_once_in_a_while(events: EventLog) -> None:
    with capture_logs() as logs:
        for tick in range(100):  # 10 s
            events.happened(lost(tick, tick))
            events.tell_gathered(1000.0 + tick / 10)
        assert 10 <= len(logs) <= 11
        events.tell_all()
        events.tell_all()
        events.tell_gathered(2000.0)
    assert sum(entry["count"] for entry in logs) == 100
    assert [entry["ranges"][0][0] for entry in logs[1:]] == [entry["ranges"][-1][1] + 1 for entry in logs[:-1]]
    assert GATHER_S == 1.0


def test_the_first_loss_is_told_without_delay(events: EventLog) -> None:
    with capture_logs() as logs:
        events.happened(lost(0, 0))
        events.tell_gathered(1000.0)
    assert len(logs) == 1


@pytest.mark.req("GC-LIM-3")
def test_an_entry_names_a_bounded_number_of_ranges(events: EventLog) -> None:
    """The count stays exact; the last range is widened, and the entry says so."""
    with capture_logs() as logs:
        for first in range(0, 10_000, 2):
            events.happened(lost(first, first))
        events.tell_all()
    (told,) = logs
    assert told["count"] == 5_000
    assert len(told["ranges"]) == RANGES_MAX
    assert told["ranges"][-1] == [2 * RANGES_MAX - 2, 9_998]
    assert told["ranges_widened"] is True


@pytest.mark.req("GC-LIM-3")
def test_what_is_gathered_is_bounded(events: EventLog) -> None:
    with capture_logs() as logs:
        for partition in range(3 * KINDS_MAX):
            events.happened(RecordsMissing(epoch=7, stream="s", partition=partition, first=0, last=0))
            assert len(events._gathered) <= KINDS_MAX
        events.tell_all()
    assert [entry["partition"] for entry in logs] == list(range(3 * KINDS_MAX)), "and nothing is forgotten"
    assert len(events.recent) == RECENT_MAX


def test_refused_messages_are_counted_and_located(events: EventLog) -> None:
    with capture_logs() as logs:
        events.message_refused(
            message(4, Run("orders", 0, 9, 10, 19, 10), Run("orders", 1, -1, 5, 5, 1)), LossCause.REFUSED, "slow"
        )
        events.message_refused(message(5, Run("orders", 0, 19, 20, 29, 3)), LossCause.REFUSED, "slow")
        events.message_refused(message(6), LossCause.DAMAGED, "not a batch")
        events.tell_all()
    assert events.refused == {"refused": 2, "damaged": 1}
    assert events.refused_records == 14
    assert {entry["log_level"] for entry in logs} == {"error"}
    assert [{**entry, "log_level": None} for entry in logs] == [
        {
            "event": "messages_refused",
            "epoch": 7,
            "cause": "refused",
            "why": "slow",
            "count": 2,
            "ranges": [[4, 5]],
            "log_level": None,
        },
        {
            "event": "records_refused",
            "stream": "orders",
            "partition": 0,
            "cause": "refused",
            "count": 13,
            "ranges": [[10, 29]],
            "log_level": None,
        },
        {
            "event": "records_refused",
            "stream": "orders",
            "partition": 1,
            "cause": "refused",
            "count": 1,
            "ranges": [[5, 5]],
            "log_level": None,
        },
        {
            "event": "messages_refused",
            "epoch": 7,
            "cause": "damaged",
            "why": "not a batch",
            "count": 1,
            "ranges": [[6, 6]],
            "log_level": None,
        },
    ]


def test_what_the_sink_loses_is_counted_by_reason(events: EventLog) -> None:
    with capture_logs() as logs:
        for i in range(10):
            events.sink_lost(stream="tcp", first=i * 100, last=i * 100 + 99, reason="reset")
        events.sink_lost(stream="tcp", first=0, last=0, reason="too large")
        events.tell_all()
    assert events.sink_losses == {"reset": 10, "too large": 1}
    assert [(entry["reason"], entry["count"], entry["ranges"]) for entry in logs] == [
        ("reset", 10, [[0, 999]]),
        ("too large", 1, [[0, 0]]),
    ]


def test_duplicates_are_counted(events: EventLog) -> None:
    with capture_logs() as logs:
        events.duplicates_dropped("orders", 0, 0)
        assert events.duplicates == 0
        events.duplicates_dropped("orders", 0, 3)
        events.duplicates_dropped("orders", 0, 4)
        events.tell_all()
    assert events.duplicates == 7
    (told,) = logs
    assert {"event": "duplicates_dropped", "log_level": "info", "count": 7}.items() <= told.items()


def test_recent_entries_are_the_last_ones(events: EventLog) -> None:
    for epoch in range(1, 300):
        events.happened(SessionFollowed(epoch=epoch, previous_epoch=epoch - 1, reason=FollowReason.SUCCESSION))
    assert [entry["epoch"] for entry in events.recent] == list(range(200, 300))
    assert events_log.RECENT_MAX == 100
