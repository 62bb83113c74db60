"""An egress under test: a real receiver and its oracle, told the same, and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

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
from gapconn.protocol.progress import Progress
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.security import Keys
from gapconn.testing.memory_gap import bursts_of
from tests.protocol.machine import oracle
from tests.protocol.machine.ledger import plain_run
from tests.protocol.machine.oracle import EgressLimits, ReceiverOracle, Stored


def charge(cut: tuple[int, ...]) -> int:
    """How the core counts the memory of a message: its symbols, a byte each to tell whether it is there, and two for
    each block."""
    message_bytes, symbol_bytes, blocks, repair_symbols = cut
    symbols = -(-message_bytes // symbol_bytes) + blocks * repair_symbols
    return symbols * (symbol_bytes + 1) + 2 * blocks


def keys_of(secrets: Mapping[int, bytes], use: int | None = None) -> Keys:
    """The keys for the core. An egress does not care which of them is in use."""
    return Keys(use=use or min(secrets), secrets=secrets)


class Egress:
    """One life of an egress.

    Args:
        limits: What it is configured to do.
        burst_max: How many equal datagrams it is given in one burst at the most.
        now_s: The time.
        saved: The stored state of an earlier life.
        secrets: Of a sealed link.
    """

    def __init__(
        self,
        limits: EgressLimits,
        *,
        burst_max: int,
        now_s: float,
        saved: Progress | None = None,
        secrets: Mapping[int, bytes] | None = None,
    ) -> None:
        self.receiver = LinkReceiver(
            ReceiverSettings(
                link_id=limits.link_id,
                interruption_timeout_s=limits.interruption_timeout_s,
                hold_s=limits.hold_s,
                reassembly_bytes_max=limits.reassembly_bytes_max,
                message_bytes_max=limits.message_bytes_max,
                keys=keys_of(secrets) if secrets else None,
                available=limits.available,
            ),
            now_s=now_s,
            resume=saved,
        )
        stored = None
        if saved is not None:
            stored = Stored(
                epoch=saved.epoch,
                next_message=saved.next_message,
                next_record=saved.next_record,
                positions=dict(saved.positions),
                lost=frozenset(number for first, last in saved.lost for number in range(first, last + 1)),
                joined_at=saved.joined_at,
                ahead={
                    each.number: oracle.Ahead(each.first_record, each.record_count, tuple(map(plain_run, each.runs)))
                    for each in saved.ahead
                },
            )
        self.oracle = ReceiverOracle(limits, charge, now_s=now_s, stored=stored)
        self.oracle.secrets = secrets or {}
        self.limits = limits
        self._burst_max = burst_max
        self._fed = 0

    def feed(self, datagrams: list[bytes], now_s: float) -> None:
        """Datagrams arrive, all at once."""
        for burst in bursts_of(datagrams, self._burst_max):
            self.receiver.receive(burst, now_s)
            burst.slab.flat[:] = 0xA5  # it may be reused at once
        for datagram in datagrams:
            self.oracle.receive(datagram, now_s)
        self._fed += len(datagrams)

    def use_secrets(self, secrets: Mapping[int, bytes]) -> None:
        """The key file has other secrets now."""
        self.receiver.use_keys(keys_of(secrets))
        self.oracle.secrets = secrets

    def pass_time(self, now_s: float) -> None:
        """The timer is called."""
        self.receiver.handle_timeout(now_s)
        self.oracle.pass_time(now_s)
        deadline_s = self.receiver.next_deadline_s()
        assert deadline_s is None or deadline_s > now_s, "a timer that was called is still due"
        owed = self.oracle.next_timer()
        assert owed is None or (deadline_s is not None and deadline_s <= owed[0]), "a timer is not asked for"

    def close(self, now_s: float) -> None:
        """It stops in order."""
        self.receiver.close(now_s)
        self.oracle.close(now_s)

    def check(self, now_s: float) -> list[Event]:
        """Compare the two; what happened since the last time."""
        receiver, owed = self.receiver, self.oracle
        receiver.handle_timeout(now_s)
        owed.pass_time(now_s)
        events = receiver.take_events()
        told, due = _by_topic(map(_plain, events)), _by_topic(owed.take_events())
        for topic, says in due.items():
            assert told[topic] == says, topic
        dropped = self.dropped
        assert dropped == dict(owed.dropped), "GC-MOD-5"
        assert receiver.counters.datagrams == self._fed == owed.used + sum(dropped.values()), "GC-MOD-5"
        assert receiver.datagrams_missed == owed.missed, "GC-DLV-12"
        assert (receiver.next_message, receiver.next_record) == (owed.next, owed.records_seen)
        assert (receiver.epoch, receiver.state.value) == (owed.followed, owed.state)
        assert receiver.conflict == owed.conflict, "GC-SESS-11"
        assert receiver.unverified == (owed.unverified_heard is not None), "GC-SEC-8"
        counts = receiver.counters
        assert (counts.messages_rebuilt, counts.symbols_rebuilt) == (owed.messages_rebuilt, owed.symbols_rebuilt)
        assert receiver.silent_s(now_s) == owed.now - owed.last_heard
        assert (receiver.held_bytes, receiver.held_messages) == (owed.held_bytes, len(owed.held))
        assert (receiver.late_bytes, receiver.late_messages) == (owed.late_bytes, len(owed.late))
        assert receiver.messages_mendable == len(owed.lost), "GC-DLV-31"
        assert (receiver.ahead_bytes, receiver.ahead_messages) == (owed.ahead_bytes, len(owed.ahead))
        held_bytes = receiver.held_bytes + receiver.ahead_bytes + receiver.late_bytes
        assert held_bytes <= self.limits.reassembly_bytes_max, "GC-LIM-1"
        held = receiver.held_messages + receiver.ahead_messages + receiver.late_messages
        assert held <= self.limits.messages_held_max, "GC-LIM-1"
        return events

    @property
    def dropped(self) -> dict[str, int]:
        """Datagrams dropped so far, by the name of the reason."""
        return {reason.name.lower(): count for reason, count in self.receiver.counters.dropped.items() if count}


def _plain(event: Event) -> oracle.Event:  # noqa: C901, PLR0911, PLR0912 - one answer for each kind
    """An event of the core as the oracle tells it."""
    match event:
        case SessionFollowed():
            return ("followed", event.epoch, event.previous_epoch, event.reason.name)
        case SessionEnded():
            return ("ended", event.epoch, event.messages_sent, event.records_sent)
        case SessionCutOff():
            return ("cut off", event.epoch, event.next_message)
        case LinkInterrupted():
            return ("interrupted", event.epoch)
        case LinkRestored():
            return ("restored", event.silent_s)
        case ConflictDetected():
            return ("conflict", event.epoch, event.rival_epoch)
        case ConflictCleared():
            return ("cleared", event.rival_epoch)
        case ForeignLinkDetected():
            return ("foreign", event.link_id)
        case UnverifiedDetected():
            return ("unverified", event.reason.name.lower(), event.key_id)
        case UnverifiedCleared():
            return ("unverified cleared",)
        case MessagesLost():
            return ("lost", event.epoch, event.first, event.last, event.cause.name.lower())
        case RecordsLost():
            return ("records lost", event.epoch, event.count)
        case RecordsMissing():
            return ("missing", event.epoch, event.stream, event.partition, event.first, event.last)
        case MessageDelivered():
            runs = tuple(map(plain_run, event.runs))
            already = dict(event.already_delivered)
            head = (event.epoch, event.number, event.first_record, event.record_count)
            kind = "late" if event.late else "ahead" if event.ahead else "delivered"
            return (kind, *head, runs, already, bytes(event.body))
        case MessageSettled():
            return ("settled", event.epoch, event.number, event.next_record)


_TOPICS = {
    "followed": "session",
    "ended": "session",
    "cut off": "session",
    "interrupted": "liveness",
    "restored": "liveness",
    "conflict": "rivals",
    "cleared": "rivals",
    "foreign": "foreign links",
    "unverified": "unverified",
    "unverified cleared": "unverified",
}


def _by_topic(events: Iterable[oracle.Event]) -> dict[str, list[oracle.Event]]:
    """Events by what they are about, each topic in order.

    What is lost is told message by message, and lost records are added up between two deliveries: timers that are
    called late say in one piece what they would have said in several.
    """
    topics: dict[str, list[oracle.Event]] = {topic: [] for topic in ("data", *_TOPICS.values())}
    data = topics["data"]
    records: Counter[int] = Counter()
    for event in events:
        kind = event[0]
        if kind in _TOPICS:
            topics[_TOPICS[kind]].append(event)
        elif kind == "lost":
            _, epoch, first, last, cause = event
            data += [("lost", epoch, number, cause) for number in range(first, last + 1)]
        elif kind == "records lost":
            records[event[1]] += event[2]
        elif kind in ("delivered", "late", "ahead", "settled"):
            data += [("records lost", *count) for count in sorted(records.items())]
            data.append(event)
            records.clear()
        else:
            data.append(event)
    data += [("records lost", *count) for count in sorted(records.items())]
    return topics
