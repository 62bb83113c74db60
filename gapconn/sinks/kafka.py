"""Kafka topics as a sink: every record as it was, in order per partition, accepted when all brokers in sync have it.

    inlet ──▶ flights ──produce──▶ librdkafka ──reports──▶ flights settled, oldest first ──▶ accept
              (bounded by bytes)                (one worker thread, which polls)

librdkafka repeats by itself for ever what a broker did not acknowledge, without duplicates and in order. It is told
(`enable.gapless.guarantee`) to end itself rather than to go on behind a record that it had to give up. Then a new
producer sends again, in order, everything that was not acknowledged.

A report is a call into Python, so as long as all goes well there is one for the last record of a run only: what was
given to one partition before it was acknowledged before it, and the offsets that the reports name must leave room for
all of it. Reported record by record are the first run of each partition, which gives the first such offset; what is
sent a second time; and everything for a topic that rejected a request before. If a broker rejected a request, the run
of records in question is sent one by one, since a request is rejected whole for one bad record in it: so only the
record that can never be accepted is given up, counted and reported, and its neighbours keep their order.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, ClassVar, Final, Literal

import attrs
import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from trio_util import AsyncValue

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.errors import SinkError
from gapconn.kafka_client import BrokerWatch, check_settings, library_settings
from gapconn.plugins import Carries, Context
from gapconn.record import Header, Records
from gapconn.sinks import Delivery, Inlet
from gapconn.units import Bytes

ORIGIN_HEADER: Final = "gapconn-origin"
"""One header for the whole id: each one costs time at every client and broker that it passes."""
ANY_PARTITION: Final = -1
REPAIR_HEADER: Final[Header] = ("gapconn-repair", b"1")
"""On a record that was lost before and sent again: it stands behind later ones."""
LATE_HEADER: Final[Header] = ("gapconn-late", b"1")
"""On a record of a message that was given up as lost and came after all: it may stand behind later ones."""
REQUEST_TIMEOUT_S: Final = 1.0
PROBE_INTERVAL_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 3.0
RECORD_OVERHEAD_BYTES: Final = 512
"""Memory of a record beside its value, so that small records are bounded too."""
SLICE_RECORDS: Final = 128
"""So many are given to librdkafka before other tasks get a turn: a fraction of a millisecond."""
BUFFER_FULL_WAIT_S: Final = 0.01

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")

_REJECTED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError._INVALID_DIFFERENT_RECORD,
    }
)
"""Answers that another try of the same request does not change."""

_PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})

_RESERVED = {
    "bootstrap.servers": "has its own key, bootstrap_servers",
    "partitioner": "is murmur2_random, that of Kafka's Java client; see the key partition",
    "enable.idempotence": "is on: order and acceptance rest on it",
    "enable.gapless.guarantee": "is on: order rests on it",
    "acks": "is all: acceptance rests on it",
    "request.required.acks": "is all: acceptance rests on it",
    "message.timeout.ms": "is off: records are tried for ever",
    "delivery.timeout.ms": "is off: records are tried for ever",
    "delivery.report.only.error": "is off: acceptance rests on the reports",
    "transactional.id": "cannot be used: batches are accepted one by one",
}


@attrs.frozen(kw_only=True)
class KafkaSinkConfig:
    """Keys of `[sink]` with `type = "kafka"`."""

    bootstrap_servers: str = option(help="Brokers to start from: host:port, several separated by commas.")
    topic: str = option(
        default="{topic}", help='Topic to write to; "{topic}" in it stands for the topic or stream of the record.'
    )
    late_topic: str | None = option(
        default=None,
        help="Topic for records that come late or as repair, so that they do not stand behind later ones; {topic} in "
        "it stands for the topic or stream of the record. Without it they go where the others go.",
    )
    topic_map: dict[str, str] = option(
        factory=dict, help="Target topic of single source topics, over what `topic` says for them."
    )
    partition: Literal["same", "key"] = option(
        default="same",
        help="Write to the partition with the number it had, or choose it by the key as Java clients do.",
    )
    origin_headers: bool = option(
        default=True,
        help="Add the header gapconn-origin, a unique id: cluster/topic/partition/offset of the record at its source; "
        "gapconn-repair to a record that was lost before and sent again by `gapconn resend`, and gapconn-late to one "
        "that the link brought late.",
    )
    in_flight_bytes: Bytes = option(
        default=Bytes(8 << 20), help="How much may be on its way to the brokers without acknowledgement."
    )
    client: dict[str, Any] = option(
        factory=dict, secret=True, help="Any further setting of librdkafka, such as those for TLS and SASL."
    )

    @bootstrap_servers.validator
    def _check_bootstrap_servers(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not value:
            raise ValueError("must not be empty")

    @topic.validator
    def _check_topic(self, attribute: attrs.Attribute[str], value: str) -> None:
        _check_template(value)

    @late_topic.validator
    def _check_late_topic(self, attribute: attrs.Attribute[str | None], value: str | None) -> None:
        if value is not None:
            _check_template(value)

    @topic_map.validator
    def _check_topic_map(self, attribute: attrs.Attribute[dict[str, str]], value: dict[str, str]) -> None:
        illegal = [topic for topic in value.values() if not _LEGAL_TOPIC.fullmatch(topic)]
        if illegal:
            raise ValueError(f'topics may have letters, digits, ".", "_" and "-", not so: {", ".join(illegal)}')

    @in_flight_bytes.validator
    def _check_in_flight(self, attribute: attrs.Attribute[Bytes], value: Bytes) -> None:
        if value <= 0:
            raise ValueError("must be more than 0 bytes")

    @client.validator
    def _check_client(self, attribute: attrs.Attribute[dict[str, Any]], value: dict[str, Any]) -> None:
        check_settings(value, _RESERVED)


def _check_template(topic: str) -> None:
    if not _LEGAL_TOPIC.fullmatch(topic.replace("{topic}", "x")):
        raise ValueError('may have letters, digits, ".", "_", "-" and {topic}, and nothing else')


@attrs.define(kw_only=True, eq=False)
class _Run:
    """Records of one source partition on their way to one target topic."""

    records: Records
    topic: str
    partition: int
    """Of the target; `ANY_PARTITION` when the key decides."""
    origin: str | None
    """What the origin ids of all records begin with; None adds no header."""
    repair: bool = False
    """They were lost before and sent again, and the header that says so is to be added."""
    late: bool = False
    """They were given up as lost before, and the header that says so is to be added."""
    done: int = 0
    """Records acknowledged or given up."""
    failure: KafkaError | None = None
    """The first failure that this producer reported; what it reports later does not count."""
    rejected: bool = False
    """A request with some of these records was rejected."""
    one_by_one: bool = False
    """This producer gets one record at a time."""
    in_order: bool = False
    """Those that are done are the first ones: one partition reports in order, several do not."""
    watched: bool
    """Every record is reported, not the last one alone: it is a second try, or the key decides on the partition."""

    @property
    def settled(self) -> bool:
        """Nothing remains to be done."""
        return self.done == len(self.records.positions)

    def again(self) -> _Run:
        """The same for another producer; what the one before may still report does not touch it."""
        # Of several partitions it is not known which records are done: some will be there twice.
        done = self.done if self.in_order or self.settled else 0
        return attrs.evolve(
            self,
            done=done,
            failure=None,
            one_by_one=self.rejected,
            in_order=self.in_order or self.rejected,
            watched=True,
        )


@attrs.frozen(kw_only=True, eq=False)
class _Flight:
    """A delivery on its way."""

    delivery: Delivery
    runs: list[_Run]
    size_bytes: int


class KafkaSink:
    """Writes records to topics with an idempotent producer."""

    Config: ClassVar[type[Any]] = KafkaSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.RECORDS})

    def __init__(self, config: KafkaSinkConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._watch = BrokerWatch(context)
        self._flights: deque[_Flight] = deque()
        """Deliveries that are not accepted yet, oldest first."""
        self._bytes_held = AsyncValue(0)
        self._inlet_ended = False
        self._refusal: SinkError | None = None
        self._progress = 0
        """Deliveries accepted and records given up."""
        self._rejecting: set[str] = set()
        """Topics that rejected a request, and may do so again."""
        # Of the current producer:
        self._to_produce = AsyncValue(0)
        """How many of the newest flights it was not given yet."""
        self._polls = AsyncValue(0)
        """Rises after every look at its reports."""
        self._failure: KafkaError | None = None
        """Why it can be used no more."""
        self._serving = False
        """Its reports are looked at."""
        self._reported = False
        """It has said something that was not looked at yet."""
        self._ends: dict[tuple[str, int], int] = {}
        """Offset of the last record of the last run that was settled, per topic and partition."""
        self._partition_counts: dict[str, int] = {}
        self._next_probe = 0.0

    async def run(self, inlet: Inlet) -> None:
        backoff = Backoff()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, inlet)
            while not self._finished:
                progress = self._progress
                try:
                    await self._produce_until_failure(inlet)
                except SinkError as error:
                    self._refusal = error
                    nursery.cancel_scope.cancel()
                    break
                if self._failure is None:
                    continue
                self._counters["producer_failed"] += 1
                self._watch.warn(
                    "producer_failed",
                    error=self._failure.str(),
                    effect="a new one sends again what was not acknowledged",
                )
                if self._progress > progress:
                    backoff.succeeded()
                await trio.sleep(backoff.failed())
        if self._refusal is not None:
            raise self._refusal

    @property
    def _finished(self) -> bool:
        return self._inlet_ended and not self._flights

    # In Trio's thread.

    async def _take(self, inlet: Inlet) -> None:
        """Line up the deliveries."""
        try:
            async for delivery in inlet:
                flight = self._flight(delivery)
                await self._bytes_held.wait_value(lambda held: held < self._config.in_flight_bytes)
                self._flights.append(flight)
                self._bytes_held.value += flight.size_bytes
                self._to_produce.value += 1
        except SinkError as error:
            self._refusal = error
        self._inlet_ended = True

    def _flight(self, delivery: Delivery) -> _Flight:
        same_partition = self._config.partition == "same"
        runs = []
        size = 0
        for part in delivery.batch.parts:
            assert isinstance(part, Records)
            origin = f"{delivery.batch.origin}/{part.stream}/{part.partition}/" if self._config.origin_headers else None
            runs.append(
                _Run(
                    records=part,
                    topic=self._target(part.stream, out_of_order=delivery.late or delivery.repair),
                    partition=part.partition if same_partition else ANY_PARTITION,
                    origin=origin,
                    repair=delivery.repair and self._config.origin_headers,
                    late=delivery.late and self._config.origin_headers,
                    in_order=same_partition,
                    watched=not same_partition,
                )
            )
            size += RECORD_OVERHEAD_BYTES * len(part.positions) + sum(len(value) for value in part.values if value)
        return _Flight(delivery=delivery, runs=runs, size_bytes=size)

    def _target(self, stream: str, *, out_of_order: bool) -> str:
        config = self._config
        if out_of_order and config.late_topic is not None:
            topic = config.late_topic.replace("{topic}", stream)
        else:
            topic = config.topic_map.get(stream) or config.topic.replace("{topic}", stream)
        if not _LEGAL_TOPIC.fullmatch(topic):
            raise SinkError(
                f"records of {stream!r} cannot go to a topic {topic!r}, which Kafka does not allow: in [sink], give a "
                "topic without {topic}, or an entry of topic_map"
            )
        return topic

    async def _produce_until_failure(self, inlet: Inlet) -> None:
        """Send all flights with one producer, until everything is accepted or the producer can be used no more."""
        for flight in self._flights:
            flight.runs[:] = [run.again() for run in flight.runs]
        self._failure = None
        self._serving = True
        self._watch.quiet = False
        self._partition_counts.clear()
        self._ends = {}
        self._to_produce.value = len(self._flights)
        producer = self._open()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, producer, nursery.cancel_scope)
                while True:
                    await self._to_produce.wait_value(lambda count: count > 0)
                    await self._produce_flight(producer, self._flights[-self._to_produce.value], inlet)
                    self._to_produce.value -= 1
                    self._accept_settled()  # Of a flight without records, nothing is reported.
        finally:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                await trio.to_thread.run_sync(self._close, producer, abandon_on_cancel=True)
            for flight in self._flights:
                for run in flight.runs:
                    self._give_up_if_rejected(run, inlet)
            self._accept_settled()

    async def _serve(self, producer: Producer, scope: trio.CancelScope) -> None:
        """Look at reports and accept what is settled, until the end."""
        try:
            await trio.to_thread.run_sync(self._poll_on, producer, trio.lowlevel.current_trio_token())
        finally:
            self._serving = False
        self._look_at_reports()
        scope.cancel()

    def _look_at_reports(self) -> None:
        self._accept_settled()
        self._polls.value += 1

    def _accept_settled(self) -> None:
        while len(self._flights) > self._to_produce.value and all(run.settled for run in self._flights[0].runs):
            flight = self._flights.popleft()
            self._bytes_held.value -= flight.size_bytes
            self._progress += 1
            flight.delivery.accept()
            self._watch.answered()

    async def _produce_flight(self, producer: Producer, flight: _Flight, inlet: Inlet) -> None:
        for run in flight.runs:
            await self._wait_for_topic(producer, run)
        if any(run.one_by_one for run in flight.runs):
            await self._until(lambda: self._flights[0] is flight)
            for run in flight.runs:
                await self._produce_one_by_one(producer, run, inlet)
        else:
            for run in flight.runs:
                await self._produce_run(producer, run, len(run.records.positions) - run.done)

    async def _produce_one_by_one(self, producer: Producer, run: _Run, inlet: Inlet) -> None:
        while not run.settled:
            done = run.done
            await self._produce_run(producer, run, 1)
            await self._until(lambda: run.done > done or run.failure is not None)  # noqa: B023 - awaited right here
            self._give_up_if_rejected(run, inlet)

    async def _produce_run(self, producer: Producer, run: _Run, count: int) -> None:
        """Give the next `count` of the records that are not done to librdkafka, which only queues them."""
        topic, partition, produce = run.topic, run.partition, producer.produce
        rows = self._rows(run, slice(run.done, run.done + count), self._reporters(run, count))
        while slice_of_rows := list(islice(rows, SLICE_RECORDS)):
            for value, key, report, stamp, headers in slice_of_rows:
                while self._serving:
                    try:
                        produce(topic, value, key, partition, report, None, stamp, headers)
                    except BufferError:
                        await trio.sleep(BUFFER_FULL_WAIT_S)  # Reports make room.
                    except KafkaException as error:
                        # Not a report: those of the records before this one are still to come, and count.
                        if run.one_by_one:
                            run.failure = error.args[0]
                        self._note_failure(run, error.args[0])
                        return
                    else:
                        break
            await trio.lowlevel.checkpoint()

    def _reporters(self, run: _Run, count: int) -> Iterable[Callable[[KafkaError | None, Message], None] | None]:
        """What librdkafka is to call for each of the records."""
        ends = self._ends
        if run.watched or run.topic in self._rejecting or (run.topic, run.partition) not in ends:
            return repeat(partial(self._report, run, ends))
        return chain(repeat(None, count - 1), [partial(self._report_last, run, ends, count)])

    def _give_up_if_rejected(self, run: _Run, inlet: Inlet) -> None:
        """Count and report a record that was rejected although it was sent alone."""
        if run.one_by_one and run.failure is not None and run.failure.code() in _REJECTED:
            position, stream = run.records.positions[run.done], run.records.stream
            self._counters["record_rejected"] += 1
            self._log.error("record_rejected", stream=stream, position=position, error=run.failure.str())
            inlet.lost(
                stream=stream,
                partition=run.records.partition,
                first=position,
                last=position,
                reason=f"rejected: {run.failure.str()}",
            )
            run.done += 1
            run.failure = None
            self._progress += 1

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for what reports bring about."""
        await self._polls.wait_value(lambda _: condition())

    async def _wait_for_topic(self, producer: Producer, run: _Run) -> None:
        """Wait until the topic is there and has the partition; for ever, since an operator can make them."""
        backoff = Backoff(limit_s=5.0)
        needed = max(run.partition, 0) + 1
        while self._partition_counts.get(run.topic, 0) < needed:
            count = await trio.to_thread.run_sync(self._count_partitions, producer, run.topic)
            if count is not None:
                self._partition_counts[run.topic] = count
                if count >= needed:
                    return
                event = "partition_missing" if count else "topic_missing"
                self._counters[event] += 1
                self._watch.warn(
                    event,
                    key=run.topic,
                    topic=run.topic,
                    partitions=count,
                    effect=f"waiting until the topic has at least {needed} partitions: create them"
                    + (', or set partition = "key"' if count else ""),
                )
            await trio.sleep(backoff.failed())

    # In worker threads.

    def _open(self) -> Producer:
        config = self._config
        defaults: dict[str, Any] = {
            "client.id": f"gapconn-{self._context.link}",
            "topic.metadata.refresh.interval.ms": 10_000,
            # Large records are for the broker to judge; this stays below what a broker takes as one request.
            "message.max.bytes": 100_000_000,
            # Memory is bounded by in_flight_bytes.
            "queue.buffering.max.messages": 10_000_000,
            "queue.buffering.max.kbytes": 2_097_151,
            # Records come in batches, so there is little to wait for (the default is 5).
            "linger.ms": 1,
        }
        if any(run.one_by_one for flight in self._flights for run in flight.runs):  # It would wait for each.
            defaults["linger.ms"] = 0
        fixed: dict[str, Any] = {
            "bootstrap.servers": config.bootstrap_servers,
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "message.timeout.ms": 0,
            "partitioner": "murmur2_random",
        }
        callbacks = {"error_cb": self._on_error, "logger": self._watch}
        try:
            return Producer({**library_settings(defaults, config.client, fixed), **callbacks})
        except KafkaException as error:
            raise SinkError(f"the Kafka client refused its settings: {error.args[0].str()}") from error

    def _close(self, producer: Producer) -> None:
        """End a producer. What it did not send yet is dropped; after a failure, what it sent may arrive yet."""
        self._watch.quiet = True
        producer.purge(in_queue=True, in_flight=False)
        if self._failure is not None:
            _poll_until_empty(producer, CLOSE_TIMEOUT_S / 3)
        producer.purge()
        _poll_until_empty(producer, CLOSE_TIMEOUT_S / 3)
        producer.close()

    def _poll_on(self, producer: Producer, token: trio.lowlevel.TrioToken) -> None:
        """Poll until the producer failed, all is done, or the task is cancelled."""
        while self._failure is None and not self._finished:
            trio.from_thread.check_cancelled()
            self._poll(producer)
            if self._reported:
                self._reported = False
                token.run_sync_soon(self._look_at_reports, idempotent=True)

    def _poll(self, producer: Producer) -> None:
        try:
            producer.poll(0.1)
        except KafkaException as error:
            self._failure = error.args[0]
        if self._watch.away:
            self._probe(producer)

    def _probe(self, producer: Producer) -> None:
        """A broker was away, and perhaps nothing is on its way: find out whether it is back."""
        now = time.monotonic()
        if now >= self._next_probe:
            self._next_probe = now + PROBE_INTERVAL_S
            with contextlib.suppress(KafkaException):
                producer.list_topics(timeout=1.0)
                self._watch.answered()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failure = error
            self._reported = True
        else:
            self._watch.on_error(error)

    def _report(self, run: _Run, ends: dict[tuple[str, int], int], error: KafkaError | None, message: Message) -> None:
        """What became of a record of a run that is watched."""
        self._reported = True
        if run.failure is not None:
            return
        if error is not None:
            run.failure = error
            self._note_failure(run, error)
            return
        run.done += 1
        offset = message.offset()
        if run.settled and run.partition != ANY_PARTITION and offset is not None and offset >= 0:
            ends[run.topic, run.partition] = offset

    def _report_last(
        self, run: _Run, ends: dict[tuple[str, int], int], count: int, error: KafkaError | None, message: Message
    ) -> None:
        """What became of the last `count` records of a run, told of the very last one."""
        self._reported = True
        if error is None:
            place = (run.topic, run.partition)
            before, offset = ends.pop(place, None), message.offset()
            if before is None or offset is None or offset < 0:
                # It does not say where: good for what it says, if nothing went wrong before.
                if self._failure is None:
                    run.done += count
                return
            if offset - before >= count:
                run.done += count
                ends[place] = offset
                return
            error = KafkaError(KafkaError._GAPLESS_GUARANTEE, "records that were given before are not there")
        if run.failure is None:
            run.failure = error
            self._note_failure(run, error)

    def _note_failure(self, run: _Run, error: KafkaError) -> None:
        if error.code() in _PURGED or (error.code() in _REJECTED and run.one_by_one):
            return
        if error.code() in _REJECTED:
            self._counters["request_rejected"] += 1
            self._rejecting.add(run.topic)
            run.rejected = True
        self._failure = error

    def _count_partitions(self, producer: Producer, topic: str) -> int | None:
        """How many partitions a topic has, 0 when it is not there; None without an answer."""
        try:
            metadata = producer.list_topics(topic, REQUEST_TIMEOUT_S)
        except KafkaException as error:
            self._counters["request_failed"] += 1
            self._watch.warn("request_failed", error=error.args[0].str())
            return None
        self._watch.answered()
        return len(metadata.topics[topic].partitions) if topic in metadata.topics else 0

    def _rows(
        self, run: _Run, rows: slice, reporters: Iterable[Any]
    ) -> Iterator[tuple[bytes | None, bytes | None, Any, int, Any]]:
        """Value, key, what to call with the report, timestamp and headers of each record."""
        records = run.records
        stamps: Iterable[int] = repeat(0)
        if records.timestamps_ms is not None:
            stamps = records.timestamps_ms[rows]
            if min(stamps, default=1) < 1:
                # librdkafka takes 0 for "now", and -1 is no timestamp at all.
                self._counters["timestamp_changed"] += sum(stamp < 1 for stamp in stamps)
                stamps = [1 if stamp == 0 else max(stamp, 0) for stamp in stamps]
        keys: Iterable[bytes | None] = repeat(None) if records.keys is None else records.keys[rows]
        headers: Iterable[Any] = repeat(None) if records.headers is None else records.headers[rows]
        if run.origin is not None:
            headers = _with_origin(headers, run.origin, records.positions[rows])
        marks = [*([REPAIR_HEADER] if run.repair else ()), *([LATE_HEADER] if run.late else ())]
        if marks:
            headers = ([*own, *marks] for own in headers)
        return zip(records.values[rows], keys, reporters, stamps, headers, strict=False)


def _with_origin(
    headers: Iterable[list[Header] | None], origin: str, positions: list[int]
) -> Iterator[list[tuple[str, str | bytes | None]]]:
    for own, position in zip(headers, positions, strict=False):
        yield [*(own or ()), (ORIGIN_HEADER, f"{origin}{position}")]


def _poll_until_empty(producer: Producer, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while len(producer) and time.monotonic() < deadline:
        with contextlib.suppress(KafkaException):
            producer.poll(0.02)
