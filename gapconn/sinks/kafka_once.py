"""Kafka topics as a sink that delivers exactly once: in transactions, with how far the link has come (GC-ONCE-2).

    inlet ──▶ flights ──produce──▶ ┌ transaction ─────────────────────┐
              (bounded by bytes)   │ records of whole deliveries      │──commit──▶ accept
                                   │ progress behind them (own topic) │
                                   └──────────────────────────────────┘

A transaction is open for `transaction_interval`, or until it holds half of `in_flight_bytes`. What was not committed
stays a flight, and is in the next one. If a broker rejected a request, the run of records in question is sent one by
one, since a request is rejected whole for one bad record in it: so only the record that can never be accepted is given
up, counted and reported. `kafka_transactions` has the producer, `kafka_progress` the topic of the progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise, repeat
from typing import Final

import attrs
import trio
from confluent_kafka import KafkaError, KafkaException, Message
from trio_util import AsyncValue

from gapconn.backoff import Backoff
from gapconn.dedup.repeats import RepeatFilter
from gapconn.errors import SinkError
from gapconn.kafka_client import BrokerWatch
from gapconn.plugins import Context
from gapconn.protocol.positions import Standing
from gapconn.ranges import Range, RangeSet
from gapconn.record import Header, Records
from gapconn.sinks import Delivery, Inlet, Reached
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sinks.kafka_records import (
    ANY_PARTITION,
    REJECTED,
    SLICE_RECORDS,
    count_partitions,
    marks_of,
    rows_of,
    say_topic_missing,
    size_of,
)
from gapconn.sinks.kafka_transactions import AbortedError, ProducerLostError, Transactions

IDLE_LOOK_S: Final = 1.0
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


@attrs.define(kw_only=True, eq=False)
class _Run:
    """Records of one source partition that go to one target topic."""

    records: Records
    topic: str
    partition: int
    """Of the target; `ANY_PARTITION` when the key decides."""
    origin: str | None
    """What the origin ids of all records begin with; None adds no header."""
    marks: Sequence[Header]
    """Headers to be added: they were lost before."""
    given_up: set[int] = attrs.field(factory=set)
    """Rows that can never be accepted, counted and reported."""
    rejected: bool = False
    """A request with some of these records was rejected: they are sent one by one."""

    @property
    def stretches(self) -> list[slice]:
        """The rows that are to be sent, from one that was given up to the next."""
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
        self._log = context.log
        self._counters = context.counters
        self._watch = BrokerWatch(context)
        self._repeats = RepeatFilter(config.dedup, context)
        self._transactions = Transactions(config, context, self._watch)
        self._resumed = False
        self._reached: Reached | None = None
        """Behind the deliveries of the last transaction, without positions."""
        self._flights: deque[_Flight] = deque()
        """Oldest first."""
        self._bytes_held = AsyncValue(0)
        self._arrived = AsyncValue(0)
        """Rises with every flight, and when the inlet ends."""
        self._inlet_ended = False
        self._refusal: SinkError | None = None
        self._partition_counts: dict[str, int] = {}

    async def resume(self) -> Reached | None:
        """Take the link over; what the target has.

        Raises:
            SinkError: the notes in the target belong to another link, or another egress takes over at the same time.
        """
        reached = await self._transactions.take_over()
        self._resumed = True
        if reached is not None:
            self._reached = Reached(progress=attrs.evolve(reached.progress, positions={}))
        return reached

    async def run(self, inlet: Inlet) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take, inlet)
                try:
                    if not self._resumed:
                        await self.resume()
                    await self._transact(inlet)
                except SinkError as error:
                    self._refusal = error
                nursery.cancel_scope.cancel()
        finally:
            await self._transactions.close()
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
        headers = self._config.origin_headers
        runs = []
        for part in delivery.batch.parts:
            assert isinstance(part, Records)
            runs.append(
                _Run(
                    records=part,
                    topic=self._config.target(part.stream, out_of_order=delivery.late or delivery.repair),
                    partition=part.partition if self._config.partition == "same" else ANY_PARTITION,
                    origin=f"{delivery.batch.origin}/{part.stream}/{part.partition}/" if headers else None,
                    marks=marks_of(delivery) if headers else (),
                )
            )
        return _Flight(delivery=delivery, runs=runs, size_bytes=sum(size_of(run.records) for run in runs))

    # -- Transactions ----------------------------------------------------------------------------------------

    async def _transact(self, inlet: Inlet) -> None:
        """One transaction after the other, until the inlet has ended and all is accepted."""
        backoff = Backoff()
        while not (self._inlet_ended and not self._flights):
            in_doubt, given_up = 0, self._counters["record_rejected"]
            try:
                if not await self._wait_for_flights():
                    continue
                await self._wait_for_topics(self._flights[0])
                count = await self._fill(inlet)
                await inlet.note_losses()
                in_doubt = count
                await self._transactions.commit()
                self._accept(count)
                backoff.succeeded()
            except AbortedError as aborted:
                self._note_aborted(aborted)
                await self._abort()
                if self._counters["record_rejected"] == given_up:  # else it has come a step further
                    await trio.sleep(backoff.failed())
            except ProducerLostError as lost:
                await self._replace(lost, in_doubt)

    async def _wait_for_flights(self) -> bool:
        """Wait until there is something to send, or a while; whether there is."""
        seen = self._arrived.value
        if not self._flights:
            with trio.move_on_after(IDLE_LOOK_S):
                await self._arrived.wait_value(lambda count: count > seen)
            self._transactions.look()
        return bool(self._flights)

    async def _fill(self, inlet: Inlet) -> int:
        """Put into a transaction what is there and what comes in time, and how far the link has come with it.

        Returns:
            How many flights are in it, oldest first. The brokers have all of it.
        """
        self._transactions.begin()
        until_s = trio.current_time() + self._config.transaction_interval
        size, count = 0, 0
        full = self._config.in_flight_bytes // 2
        while True:
            seen = self._arrived.value
            for flight in list(islice(self._flights, count, None)):
                if count and (size >= full or not await self._find_topics(flight)):
                    until_s = trio.current_time()
                    break
                for run in flight.runs:
                    await self._produce(run, inlet)
                count += 1
                size += flight.size_bytes
            if self._inlet_ended or size >= full or trio.current_time() >= until_s:
                break
            with trio.move_on_at(until_s):
                await self._arrived.wait_value(lambda arrived: arrived > seen)  # noqa: B023 - awaited right here
        await self._transactions.add_progress(*self._progress_of(count))
        await self._transactions.flush()
        return count

    def _progress_of(self, count: int) -> tuple[Reached | None, dict[tuple[str, int], Standing]]:
        """Where the link stands behind so many flights, and the positions that changed with them."""
        positions: dict[tuple[str, int], Standing] = {}
        repaired: dict[tuple[str, int], tuple[Range, ...]] = {}
        late: list[tuple[int, int]] = []
        for flight in islice(self._flights, count):
            reached = flight.delivery.reached
            if reached is not None:
                positions.update(reached.progress.positions)
                for place, ranges in reached.repaired.items():
                    repaired[place] = repaired.get(place, ()) + _without_given_up(place, ranges, flight.runs)
                late += reached.late
                if self._reached is None or not reached.late:
                    self._reached = Reached(progress=attrs.evolve(reached.progress, positions={}))
        behind = attrs.evolve(self._reached, repaired=repaired, late=tuple(late)) if self._reached else None
        return behind, positions

    def _note_aborted(self, aborted: AbortedError) -> None:
        self._counters["transaction_aborted"] += 1
        self._watch.warn("transaction_aborted", error=str(aborted), effect="sent again in the next one")
        self._partition_counts.clear()  # a topic may have gone

    async def _abort(self) -> None:
        try:
            await self._transactions.abort()
        except ProducerLostError as lost:
            await self._replace(lost, 0)

    async def _replace(self, lost: ProducerLostError, in_doubt: int) -> None:
        if await self._transactions.replace(lost) and in_doubt:
            self._accept(in_doubt)

    def _accept(self, count: int) -> None:
        for _ in range(count):
            flight = self._flights.popleft()
            self._bytes_held.value -= flight.size_bytes
            flight.delivery.accept()
        self._counters["transaction_committed"] += 1
        self._watch.answered()

    # -- Records ---------------------------------------------------------------------------------------------

    async def _produce(self, run: _Run, inlet: Inlet) -> None:
        """Give the records of a run to librdkafka; one by one if a request with some of them was rejected."""
        if not run.rejected:
            for stretch in run.stretches:
                await self._produce_rows(run, stretch, inlet)
            return
        await self._transactions.flush()
        for row in [row for stretch in run.stretches for row in range(stretch.start, stretch.stop)]:
            await self._produce_rows(run, slice(row, row + 1), inlet)
            try:
                await self._transactions.flush()
            except AbortedError as aborted:
                if aborted.code in REJECTED:
                    self._give_up(run, row, str(aborted), inlet)
                raise

    async def _produce_rows(self, run: _Run, rows: slice, inlet: Inlet) -> None:
        topic, partition, produce = run.topic, run.partition, self._transactions.producer.produce
        reporters = repeat(partial(self._report, run))
        each = rows_of(run.records, rows, reporters, origin=run.origin, marks=run.marks, counters=self._counters)
        row = rows.start
        while slice_of_rows := list(islice(each, SLICE_RECORDS)):
            for value, key, report, stamp, headers in slice_of_rows:
                while True:
                    try:
                        produce(topic, value, key, partition, report, None, stamp, headers)
                    except BufferError:
                        await self._transactions.make_room()
                        continue
                    except KafkaException as exception:
                        error = exception.args[0]
                        if error.code() not in REJECTED:
                            raise self._transactions.verdict(error) from exception
                        self._give_up(run, row, error.str(), inlet)  # librdkafka itself does not take it
                    break
                row += 1
            await trio.lowlevel.checkpoint()

    def _report(self, run: _Run, error: KafkaError | None, message: Message) -> None:
        """A record was not taken: only failures are reported."""
        if error is None or error.code() in _PURGED:
            return
        if error.code() in REJECTED:
            self._counters["request_rejected"] += not run.rejected
            run.rejected = True
        self._transactions.failure = self._transactions.failure or error

    def _give_up(self, run: _Run, row: int, error: str, inlet: Inlet) -> None:
        """Count and report a record that was rejected although it was sent alone."""
        position, stream = run.records.positions[row], run.records.stream
        run.given_up.add(row)
        self._counters["record_rejected"] += 1
        self._log.error("record_rejected", stream=stream, position=position, error=error)
        inlet.lost(
            stream=stream,
            partition=run.records.partition,
            first=position,
            last=position,
            reason=f"rejected: {error}",
        )

    # -- Topics ----------------------------------------------------------------------------------------------

    async def _find_topics(self, flight: _Flight) -> bool:
        """Whether the topics of a flight are there, with the partitions that it needs."""
        for run in flight.runs:
            needed = max(run.partition, 0) + 1
            if self._partition_counts.get(run.topic, 0) >= needed:
                continue
            count = await trio.to_thread.run_sync(
                count_partitions, self._transactions.producer, run.topic, self._watch, self._counters
            )
            if count is None:
                return False
            self._partition_counts[run.topic] = count
            if count < needed:
                say_topic_missing(self._watch, self._counters, run.topic, count, needed)
                return False
        return True

    async def _wait_for_topics(self, flight: _Flight) -> None:
        """Wait, with no transaction open, until the topics of the next flight are there."""
        backoff = Backoff(limit_s=5.0)
        while True:
            if await self._find_topics(flight):
                return
            await trio.sleep(backoff.failed())


def _without_given_up(place: tuple[str, int], ranges: tuple[Range, ...], runs: list[_Run]) -> tuple[Range, ...]:
    """What is repaired, less the records that were given up."""
    left = RangeSet(ranges)
    for run in runs:
        if (run.records.stream, run.records.partition) == place:
            for row in run.given_up:
                left.remove(run.records.positions[row], run.records.positions[row])
    return tuple(left)
