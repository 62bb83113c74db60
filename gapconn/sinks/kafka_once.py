"""Kafka topics as a sink that delivers exactly once: in transactions, with how far the link has come (GC-ONCE-2).

    inlet ──▶ flights ──produce──▶ ┌ transaction ────────────────────┐
              (bounded by bytes)   │ records of whole deliveries      │──commit──▶ accept
                                   │ progress behind them (own topic) │
                                   └──────────────────────────────────┘

`resume` takes the link over: `init_transactions` ends what an older egress left open and keeps it out from then on;
then the topic says what was committed; then this egress writes its name there.

What is known to have failed before a commit was asked for is aborted, and sent again in the next transaction. After a
failed commit it is not known whether it was done: a new producer ends the transaction one way or the other, and the
topic says which. A producer also counts as fenced when its transaction took too long: so whether another egress has the
link is told by the name in the topic alone. An egress that finds another name there ends, and does not fight.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise, repeat
from typing import Any, Final

import attrs
import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from trio_util import AsyncValue

from gapconn.backoff import Backoff
from gapconn.dedup.repeats import RepeatFilter
from gapconn.errors import SinkError
from gapconn.kafka_client import BrokerWatch, library_settings
from gapconn.plugins import Context
from gapconn.protocol.positions import Standing
from gapconn.ranges import Range, RangeSet
from gapconn.record import Header, Records
from gapconn.sinks import Delivery, Inlet, Reached
from gapconn.sinks.kafka_config import TRANSACTION_TIMEOUT_MS, KafkaSinkConfig
from gapconn.sinks.kafka_progress import Committed, NotReadyError, ProgressTopic
from gapconn.sinks.kafka_records import (
    ANY_PARTITION,
    BUFFER_FULL_WAIT_S,
    REJECTED,
    SLICE_RECORDS,
    count_partitions,
    marks_of,
    poll_until_empty,
    rows_of,
    say_topic_missing,
    size_of,
)

STEP_S: Final = 0.5
"""How long a worker thread waits for librdkafka before it looks whether it is to stop."""
FLUSH_TIMEOUT_S: Final = 10.0
"""What is not at the brokers by then is left to the commit, which says why."""
TAKE_OVER_S: Final = 3.0
"""Another egress that has kept this one out writes its name within this time, or it has died of it."""
CLOSE_TIMEOUT_S: Final = 2.0
IDLE_POLL_S: Final = 1.0


class _AbortedError(Exception):
    """A transaction failed before its commit was asked for."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__(error.str())


class _ProducerLostError(Exception):
    """A producer can be used no more; what became of its last transaction is to be found out."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__(error.str())
        self.fenced = error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)


@attrs.define(kw_only=True, eq=False)
class _Run:
    """Records of one source partition that go to one target topic."""

    records: Records
    topic: str
    partition: int
    origin: str | None
    marks: Sequence[Header]
    given_up: set[int] = attrs.field(factory=set)
    """Rows that can never be accepted, counted and reported."""
    rejected: bool = False
    """A request with some of these records was rejected: they are sent one by one."""

    @property
    def stretches(self) -> list[slice]:
        """The rows that are to be sent, from those given up to the next."""
        edges = [-1, *sorted(self.given_up), len(self.records.positions)]
        return [slice(a + 1, b) for a, b in pairwise(edges) if a + 1 < b]


@attrs.frozen(kw_only=True, eq=False)
class _Flight:
    """A delivery that is not accepted yet."""

    delivery: Delivery
    runs: list[_Run]
    size_bytes: int


class OnceKafkaSink:
    """Writes records to topics with a transactional producer."""

    def __init__(self, config: KafkaSinkConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._watch = BrokerWatch(context)
        self._repeats = RepeatFilter(config.dedup, context)
        self._topic = ProgressTopic(config, context, self._watch)
        self._name = uuid.uuid4().hex
        """Of this egress."""
        self._named = False
        """The topic has said so."""
        self._transaction = 0
        """Number of the last one that was begun."""
        self._reached: Reached | None = None
        """What the last committed transaction says; its positions are not kept."""
        self._producer: Producer | None = None
        self._failure: KafkaError | None = None
        """Why the open transaction, or the producer, is to be given up."""
        self._flights: deque[_Flight] = deque()
        self._bytes_held = AsyncValue(0)
        self._arrived = AsyncValue(0)
        """Rises with every flight, and when the inlet ends."""
        self._inlet_ended = False
        self._refusal: SinkError | None = None
        self._partition_counts: dict[str, int] = {}

    # -- Taking the link over --------------------------------------------------------------------------------

    async def resume(self) -> Reached | None:
        """End what an older egress left open, keep it out, and find out what was delivered.

        Raises:
            SinkError: the topic belongs to another link, or another egress takes over at the same time.
        """
        committed = await self._take_over()
        self._reached = committed.reached
        if self._reached is not None:
            self._reached = attrs.evolve(self._reached, progress=attrs.evolve(self._reached.progress, positions={}))
        self._log.info(
            "progress_read",
            topic=self._topic.name,
            epoch=committed.reached.progress.epoch if committed.reached else None,
            next_message=committed.reached.progress.next_message if committed.reached else None,
        )
        return committed.reached

    async def _take_over(self) -> Committed:
        """A new producer, once the cluster answers; and what it finds committed."""
        backoff = Backoff(limit_s=5.0)
        while True:
            try:
                return await trio.to_thread.run_sync(self._try_to_take_over)
            except NotReadyError as error:
                self._counters["progress_not_read"] += 1
                self._watch.warn(
                    "progress_not_read", error=str(error), effect="nothing is delivered before it is known what was"
                )
            await trio.sleep(backoff.failed())

    def _try_to_take_over(self) -> Committed:
        self._watch.quiet = False
        self._topic.prepare()
        self._refuse_others(self._topic.read())
        producer, self._failure = self._open(), None
        try:
            self._insist(producer.init_transactions)
            committed = self._topic.read()
            self._refuse_others(committed)
            if committed is None or committed.egress != self._name:
                committed = self._write_name(producer, committed)
            self._named = True
        except KafkaException as exception:
            self._close(producer)
            if self._named or exception.args[0].code() not in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED):
                raise NotReadyError(exception.args[0].str()) from exception
            raise SinkError("another egress of this link takes over at the same time") from exception
        except BaseException:
            self._close(producer)
            raise
        self._producer = producer
        self._partition_counts.clear()
        return committed

    def _write_name(self, producer: Producer, found: Committed | None) -> Committed:
        """Tell older egresses that wake up that this one has the link. What was committed stays as it is."""
        mine = Committed(
            link_id=self._context.link_id,
            egress=self._name,
            transaction=self._transaction,
            reached=found.reached if found else None,
        )
        producer.begin_transaction()
        for key, value in mine.records({}):
            producer.produce(self._topic.name, value, key, 0)
        self._insist(producer.commit_transaction)
        return mine

    def _refuse_others(self, committed: Committed | None) -> None:
        if self._named and (committed is None or committed.egress != self._name):
            raise SinkError(
                "another egress of this link has taken over"
                if committed is not None
                else f"topic {self._topic.name!r} was deleted or emptied while this egress used it"
            )

    async def _replace_producer(self, lost: _ProducerLostError, in_doubt: list[_Flight]) -> None:
        """Find out what became of the last transaction; then go on with a new producer."""
        self._counters["producer_failed"] += 1
        self._watch.warn("producer_failed", error=str(lost), effect="a new one sends again what was not committed")
        producer, self._producer = self._producer, None
        if producer is not None:
            await trio.to_thread.run_sync(self._close, producer)
        if lost.fenced:
            await trio.sleep(TAKE_OVER_S)
        committed = await self._take_over()
        if in_doubt and committed.transaction == self._transaction:
            self._accept(len(in_doubt))

    # -- In Trio's thread ------------------------------------------------------------------------------------

    async def run(self, inlet: Inlet) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take, inlet)
                try:
                    if self._producer is None:
                        await self.resume()
                    await self._transact(inlet)
                except SinkError as error:
                    self._refusal = error
                nursery.cancel_scope.cancel()
        finally:
            producer, self._producer = self._producer, None
            if producer is not None:
                with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                    await trio.to_thread.run_sync(self._close, producer, abandon_on_cancel=True)
        if self._refusal is not None:
            raise self._refusal

    async def _take(self, inlet: Inlet) -> None:
        """Line up the deliveries."""
        try:
            async for delivery in inlet:
                flight = self._flight(self._repeats.of(delivery))
                await self._bytes_held.wait_value(lambda held: held < self._config.in_flight_bytes)
                self._flights.append(flight)
                self._bytes_held.value += flight.size_bytes
                self._arrived.value += 1
        except SinkError as error:
            self._refusal = error
        self._inlet_ended = True
        self._arrived.value += 1

    def _flight(self, delivery: Delivery) -> _Flight:
        runs = []
        for part in delivery.batch.parts:
            assert isinstance(part, Records)
            runs.append(
                _Run(
                    records=part,
                    topic=self._config.target(part.stream, out_of_order=delivery.late or delivery.repair),
                    partition=part.partition if self._config.partition == "same" else ANY_PARTITION,
                    origin=f"{delivery.batch.origin}/{part.stream}/{part.partition}/"
                    if self._config.origin_headers
                    else None,
                    marks=marks_of(delivery) if self._config.origin_headers else (),
                )
            )
        return _Flight(delivery=delivery, runs=runs, size_bytes=sum(size_of(run.records) for run in runs))

    async def _transact(self, inlet: Inlet) -> None:
        """One transaction after the other, until the inlet has ended and all is accepted."""
        backoff = Backoff()
        while await self._wait_for_flights():
            await self._wait_for_topics(self._flights[0])
            in_doubt: list[_Flight] = []
            try:
                count = await self._fill(inlet)
                in_doubt = list(islice(self._flights, count))
                await inlet.note_losses()
                await self._commit()
                self._accept(count)
                backoff.succeeded()
            except _AbortedError as aborted:
                self._counters["transaction_aborted"] += 1
                self._partition_counts.clear()
                self._watch.warn("transaction_aborted", error=str(aborted), effect="sent again in the next one")
                try:
                    await self._abort()
                except _ProducerLostError as lost:
                    await self._replace_producer(lost, [])
                await trio.sleep(backoff.failed())
            except _ProducerLostError as lost:
                await self._replace_producer(lost, in_doubt)

    async def _wait_for_flights(self) -> bool:
        """Wait until there is something to send; False at the end."""
        while not self._flights:
            if self._inlet_ended:
                return False
            seen = self._arrived.value
            with trio.move_on_after(IDLE_POLL_S):
                await self._arrived.wait_value(lambda count: count > seen)  # noqa: B023 - awaited right here
            assert self._producer is not None
            try:
                _calling_back(self._producer.poll, 0)
            except KafkaException as exception:
                await self._replace_producer(_ProducerLostError(exception.args[0]), [])
        return True

    async def _fill(self, inlet: Inlet) -> int:
        """Put into a transaction what is there and what comes in time, and how far the link has come with it.

        Returns:
            How many flights are in it, oldest first.
        """
        producer = self._producer
        assert producer is not None
        self._failure = None
        self._transaction += 1
        try:
            producer.begin_transaction()
        except KafkaException as exception:
            raise _ProducerLostError(exception.args[0]) from exception
        until_s = trio.current_time() + self._config.transaction_interval
        size, count = 0, 0
        while True:
            for flight in list(islice(self._flights, count, None)):
                if count and size >= self._config.in_flight_bytes // 2:
                    break
                if any(self._lacks_partitions(run) for run in flight.runs) and not await self._find_partitions(flight):
                    until_s = trio.current_time()
                    break
                for run in flight.runs:
                    await self._produce(producer, run, inlet)
                count += 1
                size += flight.size_bytes
            if trio.current_time() >= until_s or size >= self._config.in_flight_bytes // 2 or self._inlet_ended:
                break
            seen = self._arrived.value
            if len(self._flights) == count:
                with trio.move_on_at(until_s):
                    await self._arrived.wait_value(lambda arrived: arrived > seen)  # noqa: B023 - awaited right here
        await self._produce_progress(producer, count)
        await trio.to_thread.run_sync(self._flush, producer)
        return count

    async def _produce_progress(self, producer: Producer, count: int) -> None:
        positions: dict[tuple[str, int], Standing] = {}
        repaired: dict[tuple[str, int], tuple[Range, ...]] = {}
        late: list[tuple[int, int]] = []
        for flight in islice(self._flights, count):
            if (reached := flight.delivery.reached) is None:
                continue
            positions.update(reached.progress.positions)
            for place, ranges in _delivered_of(reached.repaired, flight.runs).items():
                repaired[place] = repaired.get(place, ()) + ranges
            late += reached.late
            if self._reached is None or not reached.late:
                self._reached = Reached(progress=attrs.evolve(reached.progress, positions={}))
        committed = Committed(
            link_id=self._context.link_id,
            egress=self._name,
            transaction=self._transaction,
            reached=attrs.evolve(self._reached, repaired=repaired, late=tuple(late)) if self._reached else None,
        )
        for key, value in committed.records(positions):
            while True:
                try:
                    self._give(producer, self._topic.name, value, key, 0, self._on_progress, 0, None)
                except BufferError:
                    await trio.to_thread.run_sync(self._make_room, producer)
                    continue
                break

    async def _produce(self, producer: Producer, run: _Run, inlet: Inlet) -> None:
        """Give the records of a run to librdkafka; one by one if a request with some of them was rejected.

        A request is rejected whole for one bad record in it.
        """
        if not run.rejected:
            for stretch in run.stretches:
                await self._produce_rows(producer, run, stretch, inlet)
            return
        await trio.to_thread.run_sync(self._flush, producer)
        for row in [row for stretch in run.stretches for row in range(stretch.start, stretch.stop)]:
            await self._produce_rows(producer, run, slice(row, row + 1), inlet)
            try:
                await trio.to_thread.run_sync(self._flush, producer)
            except _AbortedError:
                if self._failure is not None and self._failure.code() in REJECTED:
                    self._give_up(run, row, self._failure, inlet)
                raise

    async def _produce_rows(self, producer: Producer, run: _Run, rows: slice, inlet: Inlet) -> None:
        report = partial(self._report, run)
        each = enumerate(
            rows_of(run.records, rows, repeat(report), origin=run.origin, marks=run.marks, counters=self._counters),
            rows.start,
        )
        while slice_of_rows := list(islice(each, SLICE_RECORDS)):
            for row, (value, key, _, stamp, headers) in slice_of_rows:
                while True:
                    try:
                        self._give(producer, run.topic, value, key, run.partition, report, stamp, headers)
                    except BufferError:
                        await trio.to_thread.run_sync(self._make_room, producer)
                        continue
                    except _AbortedError:
                        if self._failure is None or self._failure.code() not in REJECTED:
                            raise
                        self._give_up(run, row, self._failure, inlet)  # librdkafka itself does not take it
                        self._failure = None
                    break
            await trio.lowlevel.checkpoint()

    def _give(self, producer: Producer, topic: str, *record: Any) -> None:
        value, key, partition, report, stamp, headers = record
        try:
            producer.produce(topic, value, key, partition, report, None, stamp, headers)
        except KafkaException as exception:
            self._failure = exception.args[0]
            raise self._verdict(exception.args[0]) from exception

    def _give_up(self, run: _Run, row: int, error: KafkaError, inlet: Inlet) -> None:
        """Count and report a record that was rejected although it was sent alone."""
        position, stream = run.records.positions[row], run.records.stream
        run.given_up.add(row)
        self._counters["record_rejected"] += 1
        self._log.error("record_rejected", stream=stream, position=position, error=error.str())
        inlet.lost(
            stream=stream,
            partition=run.records.partition,
            first=position,
            last=position,
            reason=f"rejected: {error.str()}",
        )

    async def _commit(self) -> None:
        producer = self._producer
        assert producer is not None
        try:
            await trio.to_thread.run_sync(self._insist, producer.commit_transaction)
        except KafkaException as exception:
            raise _ProducerLostError(self._failure or exception.args[0]) from exception

    async def _abort(self) -> None:
        producer = self._producer
        assert producer is not None
        try:
            await trio.to_thread.run_sync(self._insist, producer.abort_transaction)
        except KafkaException as exception:
            raise _ProducerLostError(exception.args[0]) from exception

    def _accept(self, count: int) -> None:
        for _ in range(count):
            flight = self._flights.popleft()
            self._bytes_held.value -= flight.size_bytes
            flight.delivery.accept()
        self._counters["transaction_committed"] += 1
        self._watch.answered()

    # -- Topics ----------------------------------------------------------------------------------------------

    def _lacks_partitions(self, run: _Run) -> bool:
        return self._partition_counts.get(run.topic, 0) < max(run.partition, 0) + 1

    async def _find_partitions(self, flight: _Flight) -> bool:
        """Ask for the topics of a flight that are not known to be there; whether all are."""
        producer = self._producer
        assert producer is not None
        for run in flight.runs:
            if not self._lacks_partitions(run):
                continue
            count = await trio.to_thread.run_sync(count_partitions, producer, run.topic, self._watch, self._counters)
            if count is not None:
                self._partition_counts[run.topic] = count
                if self._lacks_partitions(run):
                    needed = max(run.partition, 0) + 1
                    say_topic_missing(self._watch, self._counters, run.topic, count, needed)
            if self._lacks_partitions(run):
                return False
        return True

    async def _wait_for_topics(self, flight: _Flight) -> None:
        """Wait, with no transaction open, until the topics of the next flight are there."""
        backoff = Backoff(limit_s=5.0)
        while True:
            if await self._find_partitions(flight):
                return
            await trio.sleep(backoff.failed())

    # -- In worker threads -----------------------------------------------------------------------------------

    def _open(self) -> Producer:
        config = self._config
        defaults: dict[str, Any] = {
            "client.id": f"gapconn-{self._context.link}",
            "topic.metadata.refresh.interval.ms": 10_000,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            # Large records are for the broker to judge; this stays below what a broker takes as one request.
            "message.max.bytes": 100_000_000,
            # Memory is bounded by in_flight_bytes.
            "queue.buffering.max.messages": 10_000_000,
            "queue.buffering.max.kbytes": 2_097_151,
        }
        fixed: dict[str, Any] = {
            "bootstrap.servers": config.bootstrap_servers,
            "transactional.id": f"gapconn-{self._context.link}",
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
        }
        callbacks = {
            "delivery.report.only.error": True,  # minded by the Python client, which wants no text
            "error_cb": self._on_error,
            "logger": self._watch,
        }
        try:
            return Producer({**library_settings(defaults, config.client, fixed), **callbacks})
        except KafkaException as error:
            raise SinkError(f"the Kafka client refused its settings: {error.args[0].str()}") from error

    def _close(self, producer: Producer) -> None:
        """End a producer. A transaction that is open stays so until the next one of this link, or its timeout."""
        self._watch.quiet = True
        # Its end includes an abort, which fails for one that was kept out by another.
        warnings.filterwarnings("ignore", "Producer abort_transaction failed during close", RuntimeWarning)
        producer.purge()
        with contextlib.suppress(KafkaException, SystemError):
            poll_until_empty(producer, CLOSE_TIMEOUT_S / 2)
        producer.close()

    def _insist(self, request: Callable[[float], object]) -> None:
        """Make a request of a transaction until it is done; only Trio's cancellation ends it before.

        Raises:
            KafkaException: trying again does not help.
        """
        while True:
            trio.from_thread.check_cancelled()
            try:
                _calling_back(request, STEP_S)
            except KafkaException as exception:
                error = exception.args[0]
                if not error.retriable():
                    raise
                if error.code() != KafkaError._TIMED_OUT:
                    time.sleep(STEP_S / 5)
                self._watch.warn("transaction_waits", error=error.str())
            else:
                return

    def _flush(self, producer: Producer) -> None:
        """Wait until the brokers have all that was given.

        Raises:
            _AbortedError, _ProducerLostError: something failed.
        """
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while self._failure is None and len(producer) and time.monotonic() < deadline:
            trio.from_thread.check_cancelled()
            try:
                _calling_back(producer.flush, STEP_S)
            except KafkaException as exception:
                self._failure = exception.args[0]
        if self._failure is not None:
            raise self._verdict(self._failure)

    def _make_room(self, producer: Producer) -> None:
        try:
            _calling_back(producer.poll, BUFFER_FULL_WAIT_S)
        except KafkaException as exception:
            self._failure = exception.args[0]
        if self._failure is not None:
            raise self._verdict(self._failure)

    def _verdict(self, error: KafkaError) -> _AbortedError | _ProducerLostError:
        return _ProducerLostError(error) if error.fatal() else _AbortedError(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failure = error
        else:
            self._watch.on_error(error)

    def _report(self, run: _Run, error: KafkaError | None, message: Message) -> None:
        """A record was not taken: only failures are reported."""
        if error is None or error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            return
        if error.code() in REJECTED:
            self._counters["request_rejected"] += not run.rejected
            run.rejected = True
        self._failure = self._failure or error

    def _on_progress(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = self._failure or error


def _calling_back(request: Callable[[float], object], timeout_s: float) -> None:
    """Make a request during which librdkafka calls back.

    Raises:
        KafkaException: it failed; or the producer did, which the client library raises here, too. While it does so it
            may go on to call back, which Python takes for a mistake of its own.
    """
    try:
        request(timeout_s)
    except SystemError as error:
        if isinstance(error.__cause__, KafkaException):
            raise error.__cause__ from error
        raise


def _delivered_of(repaired: Any, runs: list[_Run]) -> dict[tuple[str, int], tuple[Range, ...]]:
    """What is repaired, without the records that were given up."""
    left: dict[tuple[str, int], tuple[Range, ...]] = {}
    for place, ranges in repaired.items():
        rest = RangeSet()
        for first, last in ranges:
            rest.add(first, last)
        for run in runs:
            if (run.records.stream, run.records.partition) == place:
                for row in run.given_up:
                    rest.remove(run.records.positions[row], run.records.positions[row])
        left[place] = tuple(rest)
    return left
