"""Inputs and output in one Kafka cluster, exactly once.

    consumer ──▶ deduplicator ──▶ producer ┐
                      │                    ├─ one transaction: records, state, offsets of the inputs
                      └──── changes ─────▶ ┘

Everything that a batch does is in one transaction, so a crash leaves nothing half done: what was read and not committed
is read again. `transactional.id` names the deduplicator: whoever takes it last may write, an older instance is fenced
by the brokers, whatever it still believes.

The partitions of the inputs are assigned by hand, all of them to the one instance: both copies of a record must meet,
and there are no rebalances to go wrong. The group only keeps the offsets.

A session is one producer with one consumer. Whatever fails, the session is given up, and a new one starts from what was
committed last, just as after a crash: there is one way back, and every start tests it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, Final, TypeAlias

import attrs
import trio
from confluent_kafka import KafkaError, Message, TopicPartition

from gapconn.backoff import Backoff
from gapconn.dedup.changelog import FORMAT_KEY, ChangelogError, format_change
from gapconn.dedup.config import DedupFile, KafkaOutput
from gapconn.dedup.deduplicator import Deduplicator, Outgoing, Run, UnidentifiedError
from gapconn.dedup.kafka_clients import REQUEST_TIMEOUT_S, Clients, SessionFailed, ask
from gapconn.dedup.kafka_state import make_state_topic, read_state
from gapconn.dedup.kafka_transactions import ANY_PARTITION, Transactions
from gapconn.dedup.links import LinkBook
from gapconn.errors import DedupError
from gapconn.kafka_client import BrokerWatch
from gapconn.plugins import Context
from gapconn.record import Header

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

LATE_HEADER: Final[Header] = ("gapconn-late", b"1")
"""On a record that fills a hole behind later ones of its source partition."""
READ_RECORDS: Final = 5_000
TRANSACTION_RECORDS: Final = 20_000
"""So many records are committed without waiting for the interval."""
IDLE_WAIT_S: Final = 0.1
DISCOVERY_INTERVAL_S: Final = 10.0
PROBE_INTERVAL_S: Final = 1.0
MISSING_INTERVAL_S: Final = 2.0
UNREAD_PATIENCE_S: Final = 10.0
RENEWAL_INTERVAL_S: Final = 3600.0
"""All offsets are committed so often, moved or not: brokers forget a group without members, by default in a week."""

_GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})


@attrs.define
class Totals:
    """What was written since the start."""

    records: int = 0
    late: int = 0
    transactions: int = 0


@attrs.define(kw_only=True)
class _Reading:
    """A partition of an input."""

    link: str
    target: str
    position: int
    """The next offset to be read."""
    read_to: int
    """What is before this offset was read by an earlier session, and read again only for what was held."""


class KafkaDedup:
    """Runs sessions, one after the other, until it is asked to stop."""

    def __init__(
        self,
        file: DedupFile,
        context: Context,
        book: LinkBook,
        make_deduplicator: Callable[[], Deduplicator[Message]],
        look: Callable[[Deduplicator[Message]], None],
    ) -> None:
        """
        Args:
            file: With a section `[kafka]`.
            context: For the log, counters and status.
            book: Counts of the links.
            make_deduplicator: A deduplicator without state.
            look: Called about every second, in a worker thread, with the deduplicator of the session.
        """
        self._file = file
        self._context = context
        self._book = book
        self._make_deduplicator = make_deduplicator
        self._look = look
        self.totals = Totals()
        self.problem = "it has not started yet"
        """Why nothing is written right now; empty while a session runs."""
        self.missing: list[str] = []
        """Topics of the output that do not exist, or have too few partitions."""
        self._stop = trio.Event()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop. Also read in worker threads."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask for an orderly end."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            DedupError: another instance took over, or a record cannot be handled as configured.
        """
        backoff = Backoff(limit_s=5.0)
        watch = BrokerWatch(self._context)
        while not self._stop.is_set():
            watch.quiet = False
            transactions = self.totals.transactions
            session = _Session(
                self,
                self._file,
                context=self._context,
                book=self._book,
                watch=watch,
                deduplicator=self._make_deduplicator(),
            )
            try:
                await _in_thread(session.open)
                self.problem = ""
                while not self._stop.is_set():
                    await _in_thread(session.step)
                    await trio.lowlevel.checkpoint()  # the thread itself is not cancelled
                await _in_thread(session.finish)
            except SessionFailed as failure:
                self.problem = f"{failure.event}: " + ", ".join(f"{k} {v}" for k, v in failure.facts.items())
                self._context.counters[failure.event] += 1
                watch.warn(failure.event, key=str(failure.facts.get("topic", "")), **failure.facts)
            finally:
                watch.quiet = True
                await _in_thread(session.close)
            if self.totals.transactions > transactions:
                backoff.succeeded()
            with trio.move_on_after(backoff.failed()):
                await self._stop.wait()

    def look(self, deduplicator: Deduplicator[Message]) -> None:
        """Bring alarms and facts up to date."""
        self._look(deduplicator)


class _Session:
    """One producer and one consumer. All methods block; they are called in worker threads, one at a time."""

    def __init__(
        self,
        owner: KafkaDedup,
        file: DedupFile,
        *,
        context: Context,
        book: LinkBook,
        watch: BrokerWatch,
        deduplicator: Deduplicator[Message],
    ) -> None:
        assert file.kafka is not None
        assert isinstance(file.output, KafkaOutput)
        self._owner = owner
        self._file = file
        self._commit_interval_s = file.kafka.commit_interval
        self._same_partition = file.output.partition == "same"
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._book = book
        self._watch = watch
        self._deduplicator = deduplicator
        self._readings: dict[Place, _Reading] = {}
        self._moved: set[Place] = set()
        """Of these, other offsets can be committed than last time."""
        self._held_places: frozenset[Place] = frozenset()
        """Where something waited at the last commit."""
        self._partition_counts: dict[str, int] = {}
        self._uncommitted = Totals()
        self._commit_due = 0.0
        self._next_discovery = 0.0
        self._next_look = 0.0
        self._opened_s = time.monotonic()
        self._next_renewal = time.monotonic() + RENEWAL_INTERVAL_S
        self._clients = Clients(file, watch)
        self._transactions = Transactions(self._clients, file.dedup.name, watch, lambda: owner.stopping)
        self._consumer = self._clients.consumer()

    # Its life.

    def open(self) -> None:
        """Take the right to write, read the state and go to where the inputs were left.

        Raises:
            SessionFailed: that cannot be done now.
            DedupError: the state is of another kind.
        """
        # First of all: it ends whatever an older instance has under way, so that what is read below is final.
        self._transactions.take_over()
        self._restore()
        self._book.begin()
        self._discover()
        self._log.info("dedup_started", links=self._file.links, inputs=len(self._readings), state=self._facts())

    def step(self) -> None:
        """Read what there is, write what passes, and commit when it is time."""
        now = time.monotonic()
        if now >= self._next_discovery:
            self._discover()
        if now >= self._next_renewal:
            self._next_renewal = now + RENEWAL_INTERVAL_S
            self._moved |= set(self._readings)
        messages = self._consume(now)
        now = time.monotonic()
        outgoing = self._take(messages, now) if messages else []
        outgoing += self._deduplicator.release(now)
        if outgoing:
            self._write(outgoing)
        self._transactions.serve()
        if (self._moved or self._transactions.open) and (
            now >= self._commit_due or self._uncommitted.records >= TRANSACTION_RECORDS
        ):
            self._commit()
        if now >= self._next_look:
            self._next_look = now + 1.0
            self._owner.look(self._deduplicator)

    def finish(self) -> None:
        """Commit what is under way."""
        if self._moved or self._transactions.open:
            self._commit()

    def close(self) -> None:
        """Give up what is not committed, and end both clients."""
        self._transactions.close()
        self._consumer.close()

    def _facts(self) -> dict[str, int]:
        return {name: count for name, count in self._deduplicator.facts().items() if count}

    # Reading.

    def _consume(self, now: float) -> list[Message]:
        messages = ask(lambda: self._consumer.consume(READ_RECORDS, 0))
        if messages:
            return messages
        wait_s = IDLE_WAIT_S
        if self._moved or self._transactions.open:
            wait_s = min(wait_s, max(self._commit_due - now, 0.0))
        messages = ask(lambda: self._consumer.consume(1, wait_s))
        if messages:
            messages += ask(lambda: self._consumer.consume(READ_RECORDS, 0))
        elif self._watch.away:
            self._next_discovery = min(self._next_discovery, now + PROBE_INTERVAL_S)
        return messages

    def _take(self, messages: list[Message], now: float) -> list[Outgoing[Message]]:
        if any(map(Message.error, messages)):
            for message in messages:
                self._note_error(message)
            messages = [message for message in messages if message.error() is None]
        if messages and self._watch.away:
            self._watch.answered()
        outgoing: list[Outgoing[Message]] = []
        end = 0
        for place, run in groupby(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)):
            start, end = end, end + len(list(run))
            reading = self._readings.get(place)  # type: ignore[arg-type]  # neither is None without an error
            if reading is None:
                continue  # its topic was deleted
            mine = messages[start:end]
            before = 0
            if reading.position < reading.read_to:
                before = sum((message.offset() or 0) < reading.read_to for message in mine)
            for part, read_before in ((mine[:before], True), (mine[before:], False)):
                if part:
                    outgoing += self._take_run(reading, part, now, read_before=read_before)
            reading.position = (mine[-1].offset() or 0) + 1
            self._note_moved(place)  # type: ignore[arg-type]
        return outgoing

    def _take_run(
        self, reading: _Reading, messages: list[Message], now: float, *, read_before: bool
    ) -> list[Outgoing[Message]]:
        try:
            headers: list[Any] = [message.headers() for message in messages]
        except SystemError as error:  # raised for a name that is not UTF-8
            raise DedupError(
                f"{_named(messages[0])} or one behind it has a header whose name is not UTF-8: let its producer mend it"
            ) from error
        run = Run(
            link=reading.link,
            target=reading.target,
            items=messages,
            keys=list(map(Message.key, messages)),
            values=list(map(Message.value, messages)),
            headers=headers,
            read_before=read_before,
        )
        try:
            return self._deduplicator.take(run, now)
        except UnidentifiedError as error:
            raise DedupError(
                f"{_named(messages[error.row])} has no id (dedup.identity), and dedup.unidentified is fail"
            ) from error

    def _note_error(self, message: Message) -> None:
        error = message.error()
        if error is None:
            return
        topic, partition = message.topic(), message.partition()
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise SessionFailed("offset_gone", topic=topic, partition=partition, effect="it starts again")
        if error.code() in _GONE and topic is not None:
            self._counters["topic_missing"] += 1
            self._watch.warn("topic_missing", key=topic, topic=topic, effect="waiting for it")
            if partition is not None and self._readings.pop((topic, partition), None) is not None:
                ask(lambda: self._consumer.incremental_unassign([TopicPartition(topic, partition)]))
                self._moved.discard((topic, partition))
        else:
            self._watch.on_error(error)

    def _note_moved(self, place: Place) -> None:
        if not self._moved and not self._transactions.open:
            self._commit_due = time.monotonic() + self._commit_interval_s
        self._moved.add(place)

    def _discover(self) -> None:
        """Find the partitions of the inputs, also those that are new, and go to where they were left."""
        self._next_discovery = time.monotonic() + DISCOVERY_INTERVAL_S
        metadata = ask(lambda: self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S))
        self._watch.answered()
        self._partition_counts = {name: len(topic.partitions) for name, topic in metadata.topics.items()}
        found: dict[Place, tuple[str, str]] = {}
        for name, topic in metadata.topics.items():
            route = self._file.target_of(name)
            if route is None:
                continue
            if self._file.target_of(route[1]) is not None:
                raise DedupError(f"topic {name!r} would be written to {route[1]!r}, which is an input itself")
            found |= {(name, number): route for number in topic.partitions}
        found = self._writable(found)
        new = [TopicPartition(*place) for place in found if place not in self._readings]
        if not new:
            return
        committed = ask(lambda: self._consumer.committed(new, timeout=REQUEST_TIMEOUT_S))
        starts = []
        for offset in committed:
            if offset.error is not None:
                raise SessionFailed("request_failed", error=str(offset.error))
            link, target = found[offset.topic, offset.partition]
            start = self._start(link, offset)
            starts.append(TopicPartition(offset.topic, offset.partition, start))
            self._readings[offset.topic, offset.partition] = _Reading(
                link=link, target=target, position=start, read_to=_read_to(offset)
            )
        ask(lambda: self._consumer.incremental_assign(starts))
        self._context.status["inputs"] = sorted(f"{topic}/{number}" for topic, number in self._readings)

    def _writable(self, found: dict[Place, tuple[str, str]]) -> dict[Place, tuple[str, str]]:
        """Those of which the target is there; the others wait, and hold up nothing else."""
        writable, missing = {}, {}
        for (topic, number), (link, target) in found.items():
            count = self._partition_counts.get(target, 0)
            if (number if self._same_partition else 0) < count:
                writable[topic, number] = link, target
            else:
                missing[target] = count
        for target, count in missing.items():
            event = "partition_missing" if count else "topic_missing"
            self._counters[event] += 1
            self._watch.warn(
                event,
                key=target,
                topic=target,
                partitions=count,
                effect="what goes there is not read until it has as many partitions as its inputs: create them",
            )
        self._owner.missing = sorted(missing)
        if missing:
            self._next_discovery = time.monotonic() + MISSING_INTERVAL_S
        return writable

    def _start(self, link: str, committed: TopicPartition) -> int:
        """Where to begin in a partition; says what is gone."""
        place = TopicPartition(committed.topic, committed.partition)
        low, high = ask(lambda: self._consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S))
        if committed.offset < 0:
            return low
        if committed.offset < low:
            self._counters["records_expired"] += low - committed.offset
            self._log.error(
                "records_expired", link=link, topic=place.topic, partition=place.partition,
                first_offset=committed.offset, last_offset=low - 1, effect="this copy was deleted before it was read",
            )  # fmt: skip
            return low
        if committed.offset > high:
            self._counters["offsets_went_back"] += 1
            self._log.warning(
                "offsets_went_back", link=link, topic=place.topic, partition=place.partition,
                wanted=committed.offset, end=high, start=low,
            )  # fmt: skip
            return low
        return committed.offset

    # Writing.

    def _write(self, outgoing: Iterable[Outgoing[Message]]) -> None:
        if not self._moved and not self._transactions.open:
            self._commit_due = time.monotonic() + self._commit_interval_s
        self._transactions.begin()
        produce, counted = self._transactions.produce, self._uncommitted
        for target, message, own_headers, late in outgoing:
            partition = message.partition() or 0
            headers: Any = own_headers
            if late:
                headers = [*(own_headers or ()), LATE_HEADER]
                counted.late += 1
            stamp = message.timestamp()[1]
            if stamp < 1:  # librdkafka takes 0 for "now", and -1 is no timestamp at all
                stamp = 1 if stamp == 0 else 0
            produce(
                target,
                message.value(),
                message.key(),
                partition if self._same_partition else ANY_PARTITION,
                timestamp_ms=stamp,
                headers=headers,
            )
            counted.records += 1

    def _commit(self) -> None:
        """Commit records, state and offsets together."""
        self._transactions.begin()
        for key, value in self._deduplicator.changes(time.time(), self._unread_links):
            self._transactions.produce(self._file.state_topic, value, key, 0)
        offsets, held = self._offsets()
        self._transactions.commit(self._consumer, offsets)
        self._watch.answered()
        totals, counted = self._owner.totals, self._uncommitted
        totals.records += counted.records
        totals.late += counted.late
        totals.transactions += 1
        self._uncommitted = Totals()
        # Where something waits, the offset to commit changes also when nothing is read. It is no reason for a
        # transaction: whatever lets it go begins one.
        self._moved = set()
        self._held_places = held

    def _unread_links(self) -> set[str]:
        """Links with records in their topics that were not read yet, and are being read."""
        unread = set()
        for (topic, number), reading in self._readings.items():
            # What the client library knows from its last fetch, without a request. Markers at the end are never read,
            # so a link that has brought nothing for a while counts as read.
            _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            last_s = self._book.links[reading.link].last_s or 0
            if reading.position < high and time.monotonic() - max(last_s, self._opened_s) < UNREAD_PATIENCE_S:
                unread.add(reading.link)
        return unread

    def _offsets(self) -> tuple[list[TopicPartition], frozenset[Place]]:
        """What to commit of the inputs: nothing behind a record that waits; and where something waits."""
        lowest: dict[Place, int] = {}
        for message in self._deduplicator.held():
            place, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
            lowest[place] = min(offset, lowest.get(place, offset))
        offsets = []
        for place in self._moved | self._held_places:
            reading = self._readings.get(place)
            if reading is not None:
                read_to = max(reading.position, reading.read_to)
                offset = lowest.get(place, reading.position)
                offsets.append(TopicPartition(*place, offset, metadata=f"gapconn dedup read_to={read_to}"))
        return offsets, frozenset(lowest)

    # State.

    def _restore(self) -> None:
        """Read the state, which is made first where there is none."""
        topic, kind = self._file.state_topic, format_change(self._file.dedup.signature)
        make_state_topic(self._clients, topic, self._log)
        values = read_state(self._clients, topic, self._watch, lambda: self._owner.stopping)
        if not values:
            self._transactions.begin()
            self._transactions.produce(topic, kind[1], kind[0], 0)
            return
        if values.get(FORMAT_KEY) != kind[1]:
            raise DedupError(
                f"topic {topic!r} holds a state of another kind: {values.get(FORMAT_KEY, b'')!r} and not {kind[1]!r}. "
                "Where identity was changed on purpose, delete the topic: ids that were seen before are not known then"
            )
        try:
            self._deduplicator.restore(values)
        except ChangelogError as error:
            raise DedupError(f"topic {topic!r} holds something else than a state: {error}") from error


def _read_to(committed: TopicPartition) -> int:
    """Up to where a partition was read, as the metadata of its offset says."""
    said = re.fullmatch(r"gapconn dedup read_to=(\d+)", committed.metadata or "")
    return int(said[1]) if said is not None else 0


def _named(message: Message) -> str:
    return f"the record at {message.topic()}, partition {message.partition()}, offset {message.offset()}"


async def _in_thread(call: Callable[[], None]) -> None:
    """Run `call` in a worker thread to its end: it must not go on beside the next one."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(call)
