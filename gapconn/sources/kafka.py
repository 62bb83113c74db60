"""Kafka topics as a source: a member of a consumer group that loses nothing and knows what it sent.

    consumer ──messages──▶ batches ──▶ outlet ──on_sent──▶ offsets to commit
       (one worker thread at a time)        (Trio's thread)

Offsets are committed only for records that the kernel took (GC-DLV-1). How a link knows which record it sent last of a
partition is told in `kafka_offsets`; how messages become batches, in `kafka_batches`.

librdkafka is never let to choose a starting offset by itself (`auto.offset.reset=error`): where the wanted offset is
gone, records were lost before they were read, and that is counted and logged here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, ClassVar, Final, Literal, TypeVar

import attrs
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from trio_util import AsyncValue

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.errors import SourceError
from gapconn.kafka_client import BrokerWatch, check_settings, library_settings
from gapconn.plugins import Carries, Context
from gapconn.protocol.envelope import Span
from gapconn.record import NO_POSITION, Batch, encode_batch
from gapconn.sources import Outlet
from gapconn.sources.kafka_batches import RUN_OVERHEAD_BYTES, Columns, Hand, Packer, Partition, Place
from gapconn.sources.kafka_offsets import REQUEST_TIMEOUT_S, Offsets, Past, places_of
from gapconn.units import Seconds

T = TypeVar("T")

READ_BYTES: Final = 1 << 20
"""A read takes about so much from librdkafka's queue at once, or a batch if that is more: a thread's turn is shared by
many records, and they are still in the processor's cache when they are sent."""
GATHER_S: Final = 0.002
"""After a lull, the first record waits so long for others: it halves the work of both ends at a thousand a second."""
BATCHES_IN_HAND: Final = 4
"""No more is read while this many batches wait for the link."""
SESSION_TIMEOUT_MS: Final = 6_000
"""The shortest that brokers allow as they come."""
KEEP_ALIVE_S: Final = 1.0
"""How long to wait for the link before the group is told again that this member is alive."""
PROBE_INTERVAL_S: Final = 1.0

_RESERVED = {
    "bootstrap.servers": "has its own key, bootstrap_servers",
    "group.id": "has its own key, group_id",
    "isolation.level": "has its own key, isolation_level",
    "auto.offset.reset": "has its own key, start",
    "enable.auto.commit": "is off: offsets are committed after the records were sent",
    "enable.auto.offset.store": "is off: offsets are committed after the records were sent",
    "partition.assignment.strategy": "is cooperative-sticky",
}


@attrs.frozen(kw_only=True)
class KafkaSourceConfig:
    """Keys of `[source]` with `type = "kafka"`."""

    bootstrap_servers: str = option(help="Brokers to start from: host:port, several separated by commas.")
    topics: list[str] = option(
        help="Topics to carry; an entry that begins with ^ is a regular expression, also for topics made later."
    )
    group_id: str = option(help="Consumer group; the pairs that share a load are members of one group.")
    group_instance_id: str = option(
        default="",
        help="Makes this ingress a static member: a restart shorter than the session timeout moves no partitions, but "
        "those of one that is gone for good, or paused, move only when that is over. No two may have the same.",
        allowed="a name that no other member of the group has",
    )
    start: Literal["earliest", "latest"] = option(
        default="earliest", help="Where to begin in a partition for which the group has no offset."
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = option(
        default="read_committed", help="Whether records of aborted and of open transactions are left out."
    )
    unfit: Literal["stop", "skip"] = option(
        default="stop",
        help="What to do with a record that cannot cross, being too large for the link or having a header whose name "
        "is not UTF-8: stop, or leave it out, counted and logged.",
    )
    commit_interval: Seconds = option(
        default=Seconds(1.0), help="How often offsets are committed; a crash sends again what was sent since."
    )
    client: dict[str, Any] = option(
        factory=dict, secret=True, help="Any further setting of librdkafka, such as those for TLS and SASL."
    )

    @bootstrap_servers.validator
    @group_id.validator
    def _check_given(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not value:
            raise ValueError("must not be empty")

    @topics.validator
    def _check_topics(self, attribute: attrs.Attribute[list[str]], value: list[str]) -> None:
        if not value or not all(value):
            raise ValueError("must name at least one topic, and no empty one")

    @commit_interval.validator
    def _check_commit_interval(self, attribute: attrs.Attribute[Seconds], value: Seconds) -> None:
        if value <= 0:
            raise ValueError("must be more than 0 s")

    @client.validator
    def _check_client(self, attribute: attrs.Attribute[dict[str, Any]], value: dict[str, Any]) -> None:
        check_settings(value, _RESERVED)


class _ClientFailed(Exception):  # noqa: N818 - an event inside this module, not an error for others
    """The client ended itself for good (librdkafka's fatal errors); a new one may do better."""


class KafkaSource:
    """Reads topics as a member of a consumer group."""

    Config: ClassVar[type[Any]] = KafkaSourceConfig
    carries: ClassVar[Carries] = Carries.RECORDS

    def __init__(self, config: KafkaSourceConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._watch = BrokerWatch(context)
        self._session: _Session | None = None
        self._past = Past()

    def rewind_to(self, positions: Mapping[str, int]) -> None:
        """Before the source is cancelled for a pause: where the egress stands (gapconn.sources.RewindingSource)."""
        if self._session is not None:
            self._session.rewind_to(positions)

    def take_missed(self) -> list[Span]:
        """What could not be gone back to, since it was asked last (gapconn.sources.RewindingSource)."""
        missed, self._past.missed = self._past.missed, []
        return missed

    async def run(self, outlet: Outlet) -> None:
        backoff = Backoff()
        while True:
            self._session = session = _Session(self._config, self._context, self._watch, outlet, self._past)
            try:
                await session.run()
            except _ClientFailed as failure:
                self._context.counters["client_failed"] += 1
                self._context.log.error("client_failed", error=str(failure), effect="a new one is made")
            if session.was_assigned:
                backoff.succeeded()
            await trio.sleep(backoff.failed())


class _Session:
    """One consumer, from its start to its close.

    The consumer is used in worker threads, by one call at a time, and its callbacks run inside those calls.
    """

    def __init__(
        self, config: KafkaSourceConfig, context: Context, watch: BrokerWatch, outlet: Outlet, past: Past
    ) -> None:
        self.was_assigned = False
        """The group gave this session partitions to read: the client works."""
        self._config = config
        self._context = context
        self._log = context.log
        self._counters = context.counters
        self._watch = watch
        self._outlet = outlet
        self._offsets = Offsets(
            context, watch, self._ask, start_at=config.start, commit_interval_s=config.commit_interval, past=past
        )
        self._origin = ""
        self._in_hand = AsyncValue(0)
        """Batches read and not yet taken by the outlet."""
        self._hands, self._hands_to_send = trio.open_memory_channel[Hand](math.inf)  # Bounded by `_in_hand`.
        self._left_over: list[Message] = []
        self._resets: dict[Place, int] = {}
        """Partitions whose wanted offset (the value; negative when there is none) is not there."""
        self._record_bytes = 1024.0
        """What a record takes, smoothed: tells how many to ask for."""
        self._next_probe = 0.0
        self._ended: SourceError | _ClientFailed | None = None
        """Why no more is read; raised once everything before was sent."""
        self._closing = False
        self._left = False
        self._rewind_to: Mapping[str, int] | None = None
        """Where the egress stands, if the group is to go back there before it is left."""
        self._consumer = self._offsets.consumer = self._open()

    async def run(self) -> None:
        """Read and send until cancelled; then send what is in hand, commit and leave the group."""
        timeout_s = self._outlet.flush_timeout_s
        sending = trio.CancelScope(shield=True)
        deadline = math.inf
        try:
            async with trio.open_nursery() as nursery, self._hands:
                nursery.start_soon(self._send_hands, sending)
                try:
                    await self._read_on()
                finally:
                    deadline = trio.current_time() + timeout_s
                    # The rest of the time is for committing; what cannot be sent until then is the successor's.
                    sending.deadline = deadline - 0.4 * timeout_s
        finally:
            with trio.CancelScope(deadline=sending.deadline, shield=True):
                await self._outlet.flush()
            if self._rewind_to is not None:
                self._offsets.freeze()
            self._closing = True
            with trio.CancelScope(deadline=deadline, shield=True) as closing:
                await trio.to_thread.run_sync(self._leave, self._rewind_to, abandon_on_cancel=True)
            if closing.cancelled_caught:
                self._counters["close_timed_out"] += 1
                self._log.warning("close_timed_out", effect="what was sent last may be sent again after the next start")
                self._offsets.give_up_rewind()
            else:
                self._offsets.give_all_away()
            self._left = True
            if self._rewind_to is not None:
                self._offsets.tell_of_given_away(self._cluster, self._rewind_to)
        if self._ended is not None:
            raise self._ended

    # In Trio's thread.

    def rewind_to(self, positions: Mapping[str, int]) -> None:
        if self._rewind_to is None:
            self._context.status["rewound"] = {}
        self._rewind_to = positions
        if self._left:
            self._offsets.give_all_away()
            self._offsets.tell_of_given_away(self._cluster, positions)

    @property
    def _cluster(self) -> str:
        """The name of the cluster; empty if none has answered yet."""
        return self._origin or self._context.status.get("cluster", "")

    async def _read_on(self) -> None:
        while self._ended is None:
            for hand in await _in_thread(self._read):
                self._in_hand.value += 1
                self._hands.send_nowait(hand)
            await trio.lowlevel.checkpoint()
            while self._in_hand.value > BATCHES_IN_HAND:
                with trio.move_on_after(KEEP_ALIVE_S):
                    await self._in_hand.wait_value(lambda count: count <= BATCHES_IN_HAND)
                    break
                await _in_thread(self._keep_alive)

    async def _send_hands(self, scope: trio.CancelScope) -> None:
        with scope:
            async for hand in self._hands_to_send:
                kept = hand.still_owned()
                if kept.batch.parts:
                    await self._outlet.send(kept.batch, kept.note_sent)
                self._in_hand.value -= 1

    async def _flush(self) -> None:
        """Everything in hand is sent; or the time for it is over, and what remains is sent again by the next owner."""
        with trio.move_on_after(self._outlet.flush_timeout_s):
            await self._in_hand.wait_value(0)
            await self._outlet.flush()

    # In the worker thread: leaving.

    def _leave(self, positions: Mapping[str, int] | None) -> None:
        """Leave the group; also if that takes longer than anybody waits for it."""
        try:
            if positions is not None:
                self._rewind(positions, list(self._offsets.partitions.values()))
        finally:
            self._consumer.close()

    def _rewind(self, positions: Mapping[str, int], partitions: list[Partition]) -> None:
        timeout_s = 0.2 * self._outlet.flush_timeout_s
        cluster = self._cluster
        if partitions and not cluster:
            cluster = self._ask(lambda: self._consumer.cluster_id(min(timeout_s, REQUEST_TIMEOUT_S))) or ""
        self._offsets.rewind(cluster, positions, timeout_s, partitions)

    # In the worker thread: reading.

    def _open(self) -> Consumer:
        config = self._config
        defaults: dict[str, Any] = {
            "client.id": f"gapconn-{self._context.link}",
            "topic.metadata.refresh.interval.ms": 10_000,
            # A full prefetch queue is looked at again soon: the default of a second starves a fast link.
            "fetch.queue.backoff.ms": 20,
            # What waits in the client is memory; this is still several batches ahead.
            "queued.max.messages.kbytes": 8192,
            "queued.min.messages": 10_000,
            "fetch.max.bytes": 4 << 20,
        }
        if config.client.get("group.protocol") != "consumer":  # There, the broker says these.
            # Without it a killed member would hold its partitions for 45 s. The library's own thread says that we live.
            defaults |= {"session.timeout.ms": SESSION_TIMEOUT_MS, "heartbeat.interval.ms": SESSION_TIMEOUT_MS // 6}
        fixed: dict[str, Any] = {
            "bootstrap.servers": config.bootstrap_servers,
            "group.id": config.group_id,
            "isolation.level": config.isolation_level,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
        }
        if config.group_instance_id:
            fixed["group.instance.id"] = config.group_instance_id
        if config.client.get("group.protocol") != "consumer":  # With that one, the broker assigns, and cooperatively.
            fixed["partition.assignment.strategy"] = "cooperative-sticky"
        callbacks = {"error_cb": self._on_error, "on_commit": self._offsets.on_commit, "logger": self._watch}
        try:
            consumer = Consumer({**library_settings(defaults, config.client, fixed), **callbacks})
            consumer.subscribe(
                config.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            raise SourceError(f"the Kafka client refused its settings: {error.args[0].str()}") from error
        return consumer

    def _read(self) -> list[Hand]:
        """What is there, as batches; waits a moment when there is nothing."""
        self._offsets.commit_now_and_then()
        self._begin_again_where_needed()
        count = min(50_000, max(16, int(max(READ_BYTES, self._outlet.batch_bytes) / self._record_bytes)))
        messages, self._left_over = self._left_over, []
        messages += self._consume(count, 0)
        if not messages:
            # One message, as soon as there is one; then those that come with it.
            messages = self._consume(1, 0.1)
            if messages:
                messages += self._consume(count, GATHER_S)
            elif self._watch.away:
                self._probe()
        return self._batches(messages) if messages else []

    def _keep_alive(self) -> None:
        """Serve the group (rebalances, commits) without reading on."""
        self._offsets.commit_now_and_then()
        self._ask(lambda: self._consumer.pause(self._consumer.assignment()))
        # What is assigned inside this call is not paused: its message is kept for the next read.
        self._left_over += self._consume(1, 0.05)
        self._ask(lambda: self._consumer.resume(self._consumer.assignment()))

    def _consume(self, count: int, timeout_s: float) -> list[Message]:
        try:
            return self._consumer.consume(count, timeout_s)
        except KafkaException as exception:
            # It is not known what the call had taken: only a new consumer is sure to leave nothing out.
            self._ended = self._ended or _ClientFailed(str(exception))
            return []

    def _batches(self, messages: list[Message]) -> list[Hand]:
        if any(map(Message.error, messages)):
            for message in messages:
                self._note_error(message)
            messages = [message for message in messages if message.error() is None]
            if not messages:
                return []
        if not self._origin:
            self._origin = self._ask(lambda: self._consumer.cluster_id(REQUEST_TIMEOUT_S)) or ""
            if not self._origin:
                self._left_over = messages
                return []
            self._context.status["cluster"] = self._origin
        self._watch.answered()
        packer = Packer(
            origin=self._origin,
            batch_bytes=min(self._outlet.batch_bytes, self._outlet.batch_bytes_max - RUN_OVERHEAD_BYTES),
        )
        end = 0
        for place, run in groupby(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)):
            start, end = end, end + len(list(run))
            partition = self._offsets.partitions.get(place)  # type: ignore[arg-type]  # neither is None without an error
            if partition is not None:  # Else it was revoked inside this very read, and its next owner reads these.
                if partition.began == NO_POSITION:
                    partition.began = messages[start].offset() or 0
                self._pack(packer, partition, messages[start:end])
        hands = packer.finish()
        if packer.record_count:
            self._record_bytes += 0.2 * (packer.total_bytes / packer.record_count - self._record_bytes)
        return hands

    def _pack(self, packer: Packer, partition: Partition, messages: list[Message]) -> None:
        while messages and self._ended is None:
            columns = Columns.of(messages, batch_bytes=packer.batch_bytes, batch_bytes_max=self._outlet.batch_bytes_max)
            self._pack_columns(packer, partition, columns)
            messages = messages[len(columns.positions) :]
            if columns.unreadable_follows and self._ended is None:
                offset = messages.pop(0).offset() or 0
                self._leave_out(partition, offset, "has a header whose name is not UTF-8", "let its producer mend that")

    def _pack_columns(self, packer: Packer, partition: Partition, columns: Columns) -> None:
        start, limit = 0, self._outlet.batch_bytes_max - RUN_OVERHEAD_BYTES
        for index, size in enumerate(columns.sizes()) if columns.largest_bytes > limit else ():
            if size <= limit or self._fits(partition, columns, index):
                continue
            packer.add(partition, columns, start, index)
            start = index + 1
            why = f"takes about {size} bytes, and a message of this link at most {self._outlet.batch_bytes_max}"
            self._leave_out(partition, columns.positions[index], why, "raise message_bytes_max in [link]")
            if self._ended is not None:
                return
        packer.add(partition, columns, start, len(columns.positions))

    def _fits(self, partition: Partition, columns: Columns, index: int) -> bool:
        """Whether the record alone makes a batch that can cross, exactly."""
        body = bytearray()
        encode_batch(Batch(origin=self._origin, parts=[columns.run(partition, index, index + 1)]), body, 0)
        return len(body) <= self._outlet.batch_bytes_max

    def _leave_out(self, partition: Partition, offset: int, why: str, advice: str) -> None:
        """Deal with a record that cannot cross: leave it out, or end reading before it."""
        topic, number = partition.place
        self._counters["record_unfit"] += 1
        self._log.error("record_unfit", topic=topic, partition=number, offset=offset, reason=why)
        if self._config.unfit == "stop":
            self._ended = SourceError(
                f"the record at offset {offset} of partition {number} of topic {topic!r} {why}: {advice}, or set "
                'unfit = "skip" in [source] to leave such records out'
            )
        else:
            # The chain says that it was sent: so the egress misses and reports exactly this record.
            partition.handed = offset

    def _note_error(self, message: Message) -> None:
        error = message.error()
        if error is None:
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if error.code() == KafkaError._AUTO_OFFSET_RESET and topic is not None and partition is not None:
            self._resets[topic, partition] = NO_POSITION if offset is None else offset
        elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            self._counters["topic_missing"] += 1
            self._watch.warn("topic_missing", key=str(topic), topic=topic, effect="waiting for it")
        else:
            self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._ended = self._ended or _ClientFailed(error.str())
        else:
            self._watch.on_error(error)

    def _probe(self) -> None:
        """Nothing comes, and a broker was away: find out whether it is back."""
        now = time.monotonic()
        if now >= self._next_probe:
            self._next_probe = now + PROBE_INTERVAL_S
            if self._ask(lambda: self._consumer.list_topics(timeout=1.0)) is not None:
                self._watch.answered()

    def _ask(self, request: Callable[[], T]) -> T | None:
        """The answer to a request; None, logged and counted, when there is none."""
        try:
            return request()
        except KafkaException as exception:
            error: KafkaError = exception.args[0]
            self._counters["request_failed"] += 1
            self._watch.warn("request_failed", error=error.str())
            if error.fatal():
                self._on_error(error)
            return None

    # In the worker thread: the group.

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        starts = self._offsets.begin(assigned)
        if starts is None:
            self._forget(assigned)
            self._ended = self._ended or _ClientFailed("where the group stands in its partitions is not known")
            return
        self._ask(lambda: consumer.incremental_assign(starts))
        # A partition that was lost while it was paused (`_keep_alive`) comes back paused, and would stay so for ever.
        self._ask(lambda: consumer.resume(starts))
        self.was_assigned |= bool(starts)
        self._show_partitions()

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """What is in hand is sent and committed before anybody else gets these partitions."""
        assigned = self._offsets.partitions
        if not self._closing:
            trio.from_thread.run(self._flush)
            positions = self._rewind_to
            if positions is not None:  # It is about to be left, and this is the last that can be done here.
                going = [assigned[place] for place in places_of(revoked) if place in assigned]
                trio.from_thread.run_sync(self._offsets.freeze, going)
                self._rewind(positions, going)
        self._offsets.commit_now([assigned[place] for place in places_of(revoked) if place in assigned])
        self._forget(revoked, moved=not self._closing)
        self._log.info("partitions_revoked", partitions=[f"{topic}/{number}" for topic, number in places_of(revoked)])

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """Somebody else has these partitions already: what is in hand is theirs to send."""
        self._forget(lost)
        self._counters["partitions_lost"] += len(lost)
        self._log.warning("partitions_lost", partitions=[f"{topic}/{number}" for topic, number in places_of(lost)])

    def _forget(self, partitions: list[TopicPartition], *, moved: bool = False) -> None:
        for place in places_of(partitions):
            self._resets.pop(place, None)
            self._offsets.give_away(place, moved=moved)
        self._left_over = [
            each for each in self._left_over if (each.topic(), each.partition()) in self._offsets.partitions
        ]
        self._show_partitions()

    def _show_partitions(self) -> None:
        self._context.status["partitions"] = sorted(f"{topic}/{number}" for topic, number in self._offsets.partitions)

    def _begin_again_where_needed(self) -> None:
        """Go on in the partitions whose wanted offset was not there, and say what that means."""
        for place, wanted in list(self._resets.items()):
            partition, ends = self._offsets.partitions.get(place), self._offsets.ends(place)
            if partition is None or ends is None or any((m.topic(), m.partition()) == place for m in self._left_over):
                continue  # What is left over is of before: first that.
            topic, number = place
            first, end = ends
            if wanted < 0:
                first = self._offsets.start(ends)
            elif wanted < first:
                self._counters["records_expired"] += first - wanted
                self._log.error(
                    "records_expired", topic=topic, partition=number, first_offset=wanted, last_offset=first - 1,
                    effect="the source had deleted them before they were read",
                )  # fmt: skip
            else:
                if not self._offsets.commit_beginnings([TopicPartition(*place, first)]):
                    continue
                self._offsets.begin_anew(partition)
                self._counters["offsets_went_back"] += 1
                self._log.warning(
                    "offsets_went_back", topic=topic, partition=number, wanted=wanted, end=end, start=first
                )
            del self._resets[place]
            self._go_to(place, first)

    def _go_to(self, place: Place, offset: int) -> None:
        self._ask(lambda: self._consumer.incremental_unassign([TopicPartition(*place)]))
        self._ask(lambda: self._consumer.incremental_assign([TopicPartition(*place, offset)]))


async def _in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a worker thread to its end: its callbacks need Trio's thread, so it cannot be left alone."""
    with trio.CancelScope(shield=True):
        return await trio.to_thread.run_sync(call)
    raise AssertionError("a shield alone cancels nothing")
