"""Everything that the demo gets to know: what its three processes say of themselves, as figures and as news."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import attrs

from gapconn.demo.plan import Phase

NEWS_MAX: Final = 100
RATES_MAX: Final = 600


@attrs.define
class Ranges:
    """Numbers as ascending ranges (first, last), both included."""

    pairs: list[tuple[int, int]] = attrs.field(factory=list)

    def add(self, pairs: Iterable[Iterable[int]]) -> None:
        """Take more of them in; those that touch each other become one."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.pairs, *((first, last) for first, last in pairs)]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self.pairs = merged

    @property
    def count(self) -> int:
        """How many numbers there are in them."""
        return sum(last - first + 1 for first, last in self.pairs)

    @property
    def end(self) -> int:
        """Behind the last number; 0 if there is none."""
        return self.pairs[-1][1] + 1 if self.pairs else 0

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.pairs)

    def text(self, limit: int) -> str:
        """As people write it, with at most `limit` ranges."""
        shown = [f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in self.pairs[:limit]]
        more = len(self.pairs) - len(shown)
        return ", ".join(shown) + (f" and {more:,} more" if more else "")


class Level(enum.Enum):
    """How news are to be taken."""

    PLAIN = "plain"
    GOOD = "good"
    LOSS = "loss"
    ALARM = "alarm"


@attrs.frozen(kw_only=True)
class News:
    """Something that happened."""

    at_s: float
    """Seconds since the demo began."""
    text: str
    level: Level


@attrs.define(kw_only=True)
class Alarm:
    """An alarm that the egress raised."""

    name: str
    raised_at_s: float
    """Seconds since the demo began."""
    phase: Phase
    cleared_at_s: float | None = None


@attrs.define(kw_only=True)
class Session:
    """What is known of one life of the ingress."""

    epoch: int
    number: int
    """From 1."""
    said_sent_records: int = 0
    """What the ingress said last of itself."""
    said_sent_bytes: int = 0
    announced_records: int | None = None
    """What its Shutdown said, as the egress heard it; None when it was killed."""
    closed_records: int | None = None
    """What it said itself at its end; None when it was killed."""
    settled_records: int = 0
    """Its records that had arrived or were counted as lost when it was over."""
    lost_messages: Ranges = attrs.field(factory=Ranges)
    lost_records: Ranges = attrs.field(factory=Ranges)


@attrs.frozen(kw_only=True)
class IngressFacts:
    """From `/status` of the ingress."""

    epoch: int
    state: str
    records: int
    bytes: int

    @classmethod
    def of(cls, status: dict[str, Any]) -> IngressFacts:
        sent = status["sent"]
        return cls(epoch=status["epoch"], state=status["state"], records=sent["records"], bytes=sent["bytes"])


@attrs.frozen(kw_only=True)
class EgressFacts:
    """From `/status` of the egress. What a sink does not count is 0."""

    epoch: int = 0
    state: str = "waiting"
    datagrams: int = 0
    bytes: int = 0
    records: int = 0
    datagrams_missed: int = 0
    datagrams_doubled: int = 0
    datagrams_damaged: int = 0
    kernel_drops: int = 0
    messages_lost: int = 0
    records_lost: int = 0
    records_repeated: int = 0
    """Sent again by a restarted ingress, and dropped."""
    held: int = 0
    """Messages that are not settled or not with the sink yet."""
    verified: int = 0
    damaged: int = 0
    duplicates: int = 0
    reordered: int = 0
    missing: int = 0
    first: int | None = None
    last: int | None = None
    verifies: bool = False
    """Whether the sink verifies what it gets."""

    @classmethod
    def of(cls, status: dict[str, Any]) -> EgressFacts:
        received, missed, dropped = status["received"], status["missed"], status["dropped"]
        held, sink = status["held"], status["sink"]
        return cls(
            epoch=status["epoch"],
            state=status["state"],
            datagrams=received["datagrams"],
            bytes=received["bytes"],
            records=received["records"],
            datagrams_missed=missed["datagrams"],
            datagrams_doubled=dropped.get("duplicate", 0),
            datagrams_damaged=dropped.get("bad_check", 0),
            kernel_drops=missed["kernel_drops"],
            messages_lost=sum(missed["messages"].values()) + sum(missed["refused_messages"].values()),
            records_lost=missed["records"] + missed["refused_records"],
            records_repeated=status["duplicate_records"],
            held=held["incomplete_messages"] + held["sink_messages"],
            verifies="verified" in sink,
            **{name: sink[name] for name in _SELF_CHECK if name in sink},
        )


_SELF_CHECK = ("verified", "damaged", "duplicates", "reordered", "missing", "first", "last")


@attrs.frozen(kw_only=True)
class GapFacts:
    """From the reports of the gap, in datagrams."""

    received: int = 0
    forwarded: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    unsent: int = 0
    kernel_dropped: int = 0
    faults: bool = False
    """Whether it behaves badly at the moment."""

    @classmethod
    def of(cls, report: dict[str, Any]) -> GapFacts:
        return cls(**{field.name: report[field.name] for field in attrs.fields(cls)})

    @property
    def harmed(self) -> int:
        """What cannot have arrived intact."""
        return self.dropped + self.corrupted + self.unsent


@attrs.frozen(kw_only=True)
class Rate:
    """Bits per second, of UDP payload, between two looks."""

    at_s: float
    sent_bps: float
    arrived_bps: float


@attrs.define(kw_only=True)
class Ledger:
    """The story so far."""

    title: str
    source: str
    """What the ingress reads."""
    sink: str
    """What the egress writes, in a word or two."""
    seconds: float
    """About how long it will take."""
    began_at: float = attrs.field(factory=time.time)
    phase: Phase = Phase.CLEAN
    finished: bool = False
    ingress_life: str = "starting"
    egress_life: str = "starting"
    ingress: IngressFacts | None = None
    """None when there is none that answers."""
    egress: EgressFacts = attrs.field(factory=EgressFacts)
    gap: GapFacts = attrs.field(factory=GapFacts)
    sessions: list[Session] = attrs.field(factory=list)
    alarms: list[Alarm] = attrs.field(factory=list)
    missing: dict[tuple[str, int], Ranges] = attrs.field(factory=dict)
    """By (stream, partition): positions that the egress reported as missing."""
    ranges_widened: bool = False
    """There were so many losses that the egress named their places roughly."""
    news: deque[News] = attrs.field(factory=lambda: deque(maxlen=NEWS_MAX))
    news_count: int = 0
    rates: deque[Rate] = attrs.field(factory=lambda: deque(maxlen=RATES_MAX))
    _totals: tuple[float, int, int] | None = None

    @property
    def now_s(self) -> float:
        """Seconds since the demo began."""
        return time.time() - self.began_at

    @property
    def sent_records(self) -> int:
        """In all sessions, as far as is known: a killed ingress sent some after it was last asked."""
        known = self.egress.records + self.egress.records_lost
        return max(known, sum(max(session.said_sent_records, session.settled_records) for session in self.sessions))

    @property
    def arrived_records(self) -> int:
        """Delivered, each once."""
        return self.egress.records - self.egress.records_repeated

    @property
    def standing_alarm(self) -> Alarm | None:
        """The last alarm that has not cleared."""
        return next((alarm for alarm in reversed(self.alarms) if alarm.cleared_at_s is None), None)

    def session(self, epoch: int) -> Session:
        """The session of that epoch, a new one if it was not heard of before."""
        for session in self.sessions:
            if session.epoch == epoch:
                return session
        self.sessions.append(Session(epoch=epoch, number=len(self.sessions) + 1))
        return self.sessions[-1]

    def tell(self, text: str, level: Level = Level.PLAIN, at_s: float | None = None) -> None:
        """Add to the news."""
        self.news.append(News(at_s=self.now_s if at_s is None else at_s, text=text, level=level))
        self.news_count += 1

    def look(self, ingress: dict[str, Any] | None, egress: dict[str, Any] | None) -> None:
        """Take what the two ends show of themselves; None where one does not answer."""
        self.ingress = IngressFacts.of(ingress) if ingress else None
        if self.ingress is not None:
            session = self.session(self.ingress.epoch)
            session.said_sent_records, session.said_sent_bytes = self.ingress.records, self.ingress.bytes
        if egress is not None:
            self.egress = EgressFacts.of(egress)
        self._note_rates()

    def _note_rates(self) -> None:
        now_s, sent, arrived = self.now_s, sum(s.said_sent_bytes for s in self.sessions), self.egress.bytes
        if self._totals is not None:
            then_s, sent_then, arrived_then = self._totals
            per_second = 8 / max(now_s - then_s, 0.001)
            self.rates.append(
                Rate(
                    at_s=now_s,
                    sent_bps=(sent - sent_then) * per_second,
                    arrived_bps=(arrived - arrived_then) * per_second,
                )
            )
        self._totals = (now_s, sent, arrived)

    def ingress_said(self, entry: dict[str, Any]) -> None:
        """Take a log entry of the ingress."""
        match entry["event"]:
            case "ingress_started":
                self.session(entry["epoch"])
            case "session_closed":
                self.sessions[-1].closed_records = self.sessions[-1].said_sent_records = entry["records"]

    def egress_said(self, entry: dict[str, Any]) -> None:
        """Take a log entry of the egress."""
        at_s = datetime.fromisoformat(entry["timestamp"]).timestamp() - self.began_at
        match entry["event"]:
            case "session_followed":
                session = self.session(entry["epoch"])
                self.tell(f"the egress follows session {session.number} ({entry['reason']})", Level.GOOD, at_s)
            case "session_ended":
                session = self.session(entry["epoch"])
                session.announced_records = entry["records_sent"]
                self.tell(f"session {session.number} said goodbye: {entry['records_sent']:,} records sent", at_s=at_s)
            case "link_interrupted":
                self.alarms.append(Alarm(name="link interrupted", raised_at_s=at_s, phase=self.phase))
                what = "nothing heard" if entry["epoch"] else "no ingress heard yet"
                self.tell(f"ALARM link interrupted: {what} for {entry['silent_s']:.1f} s", Level.ALARM, at_s)
            case "link_restored":
                self._clear("link interrupted", at_s)
                self.tell(f"alarm cleared: link heard again after {entry['silent_s']:.1f} s", Level.GOOD, at_s)
            case "conflict_detected":
                self.alarms.append(Alarm(name="conflict", raised_at_s=at_s, phase=self.phase))
                self.tell("ALARM conflict: two ingresses on one link", Level.ALARM, at_s)
            case "conflict_cleared":
                self._clear("conflict", at_s)
                self.tell("alarm cleared: one ingress on the link", Level.GOOD, at_s)
            case "messages_lost" | "messages_refused":
                self._note_lost_messages(entry, at_s)
            case "records_lost":
                self.session(entry["epoch"]).lost_records.add(entry["ranges"])
                self._note_width(entry)
            case "records_missing" | "records_refused":
                place = (entry["stream"], entry["partition"])
                self.missing.setdefault(place, Ranges()).add(entry["ranges"])
                self._note_width(entry)
            case "duplicates_dropped":
                self.tell(f"{entry['count']:,} records came a second time and were dropped", at_s=at_s)
            case _ if entry["level"] in ("warning", "error"):
                self.tell(f"the egress says {entry['event']}", Level.LOSS, at_s)

    def _note_lost_messages(self, entry: dict[str, Any], at_s: float) -> None:
        session, lost = self.session(entry["epoch"]), Ranges()
        lost.add(entry["ranges"])
        session.lost_messages.add(entry["ranges"])
        self._note_width(entry)
        what = "message" if lost.count == 1 else "messages"
        self.tell(f"{lost.count:,} {what} lost in session {session.number}: {lost.text(8)}", Level.LOSS, at_s)

    def _note_width(self, entry: dict[str, Any]) -> None:
        self.ranges_widened |= entry.get("ranges_widened", False)

    def _clear(self, name: str, at_s: float) -> None:
        for alarm in self.alarms:
            if alarm.name == name and alarm.cleared_at_s is None:
                alarm.cleared_at_s = at_s
