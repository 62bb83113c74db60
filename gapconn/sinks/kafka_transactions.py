"""The transactions of one egress: taking the link over, committing, aborting, and finding out what became of one.

What is known to have failed before a commit was asked for is aborted (`AbortedError`). After a failed commit it is not
known whether it was done (`ProducerLostError`): a new producer ends the transaction one way or the other, and the topic
says which. A producer also counts as fenced when its transaction took too long: so whether another egress has the link
is told by the name in the topic alone. An egress that finds another name there ends, and does not fight.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gapconn.backoff import Backoff
from gapconn.errors import SinkError
from gapconn.kafka_client import BrokerWatch, library_settings
from gapconn.plugins import Context
from gapconn.protocol.positions import Standing
from gapconn.sinks import Reached
from gapconn.sinks.kafka_config import TRANSACTION_TIMEOUT_MS, KafkaSinkConfig
from gapconn.sinks.kafka_progress import Committed, NotReadyError, ProgressTopic
from gapconn.sinks.kafka_records import BUFFER_FULL_WAIT_S, poll_until_empty

STEP_S: Final = 0.5
"""How long a worker thread waits for librdkafka before it looks whether it is to stop."""
FLUSH_TIMEOUT_S: Final = 10.0
"""What is not at the brokers by then is left to the commit, which says why."""
TAKE_OVER_S: Final = 3.0
"""Another egress that has kept this one out writes its name within this time, or it has died of it."""
CLOSE_TIMEOUT_S: Final = 2.0

_FENCED: Final = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED})


class AbortedError(Exception):
    """A transaction failed before its commit was asked for: it is to be aborted."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__(error.str())
        self.code = error.code()


class ProducerLostError(Exception):
    """A producer can be used no more; what became of its last transaction is to be found out."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__(error.str())
        self.fenced = error.code() in _FENCED


class Transactions:
    """A transactional producer, replaced when it fails. Used by one task.

    Args:
        config: Of the sink.
        context: Of the sink.
        watch: What the client says of its brokers.

    Attributes:
        producer: To produce with between `begin` and `commit`; set by `take_over`.
        failure: Why the open transaction, or the producer, is to be given up; for reports of records to set.
    """

    producer: Producer

    def __init__(self, config: KafkaSinkConfig, context: Context, watch: BrokerWatch) -> None:
        self.failure: KafkaError | None = None
        self._config = config
        self._context = context
        self._watch = watch
        self._topic = ProgressTopic(config, context, watch)
        self._name = uuid.uuid4().hex
        """Of this egress."""
        self._named = False
        """The topic has said so."""
        self._number = 0
        """Of the last transaction that was begun."""
        self._open = False
        """There is a producer."""

    # -- In Trio's thread ------------------------------------------------------------------------------------

    async def take_over(self) -> Reached | None:
        """End what an older egress left open, keep it out, and find out what was delivered (GC-ONCE-5).

        Raises:
            SinkError: the topic belongs to another link, or another egress has taken over.
        """
        committed = await self._take_over()
        progress = committed.reached.progress if committed.reached else None
        self._context.log.info(
            "progress_read",
            topic=self._topic.name,
            epoch=progress.epoch if progress else None,
            next_message=progress.next_message if progress else None,
        )
        return committed.reached

    async def _take_over(self) -> Committed:
        """A new producer, once the cluster answers; and what it finds committed."""
        backoff = Backoff(limit_s=5.0)
        while True:
            try:
                return await trio.to_thread.run_sync(self._try_to_take_over)
            except NotReadyError as error:
                self._context.counters["progress_not_read"] += 1
                self._watch.warn(
                    "progress_not_read", error=str(error), effect="nothing is delivered before it is known what was"
                )
            await trio.sleep(backoff.failed())

    async def replace(self, lost: ProducerLostError) -> bool:
        """Go on with a new producer; whether the last transaction was committed after all.

        Raises:
            SinkError: another egress has taken over.
        """
        self._context.counters["producer_failed"] += 1
        self._watch.warn("producer_failed", error=str(lost), effect="a new one sends again what was not committed")
        await self.close()
        if lost.fenced:
            await trio.sleep(TAKE_OVER_S)
        committed = await self._take_over()
        return committed.transaction == self._number

    def begin(self) -> None:
        """Begin a transaction.

        Raises:
            ProducerLostError: there is none any more to begin with.
        """
        self.failure = None
        self._number += 1
        try:
            self.producer.begin_transaction()
        except KafkaException as exception:
            raise ProducerLostError(exception.args[0]) from exception

    async def add_progress(self, reached: Reached | None, positions: Mapping[tuple[str, int], Standing]) -> None:
        """Put in how far the link has come; of the positions, these."""
        committed = self._committed(reached)
        for key, value in committed.records(positions):
            while True:
                try:
                    self.producer.produce(self._topic.name, value, key, 0, self._on_progress)
                except BufferError:
                    await self.make_room()
                except KafkaException as exception:
                    raise self.verdict(exception.args[0]) from exception
                else:
                    break

    async def flush(self) -> None:
        """Wait until the brokers have all that was produced, or a while.

        Raises:
            AbortedError, ProducerLostError: something failed.
        """
        await trio.to_thread.run_sync(self._flush)
        if self.failure is not None:
            raise self.verdict(self.failure)

    async def make_room(self) -> None:
        """Wait a moment for librdkafka's queue."""
        await trio.to_thread.run_sync(self._call, self.producer.poll, BUFFER_FULL_WAIT_S)
        if self.failure is not None:
            raise self.verdict(self.failure)

    async def commit(self) -> None:
        """Commit what was flushed.

        Raises:
            ProducerLostError: it is not known whether it was.
        """
        try:
            await trio.to_thread.run_sync(self._insist, self.producer.commit_transaction)
        except KafkaException as exception:
            raise ProducerLostError(exception.args[0]) from exception

    async def abort(self) -> None:
        """Abort what was not committed.

        Raises:
            ProducerLostError: the producer cannot go on.
        """
        try:
            await trio.to_thread.run_sync(self._insist, self.producer.abort_transaction)
        except KafkaException as exception:
            raise ProducerLostError(exception.args[0]) from exception

    def look(self) -> None:
        """Take in, between transactions, what the client says of itself.

        Raises:
            ProducerLostError: it has failed for good.
        """
        self.failure = None
        self._call(self.producer.poll, 0)
        if self.failure is not None:
            raise ProducerLostError(self.failure)

    async def close(self) -> None:
        """End the producer. A transaction that is open stays so until the next one of this link, or its timeout."""
        if self._open:
            self._open = False
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                await trio.to_thread.run_sync(self._close, self.producer, abandon_on_cancel=True)

    def verdict(self, error: KafkaError) -> AbortedError | ProducerLostError:
        """What this error means for the open transaction."""
        return ProducerLostError(error) if error.fatal() else AbortedError(error)

    def _committed(self, reached: Reached | None) -> Committed:
        return Committed(link_id=self._context.link_id, egress=self._name, transaction=self._number, reached=reached)

    # -- In worker threads -----------------------------------------------------------------------------------

    def _try_to_take_over(self) -> Committed:
        self._watch.quiet = False
        self._topic.prepare()
        self._refuse_others(self._topic.read())
        producer = self._make()
        try:
            self._insist(producer.init_transactions)
            committed = self._topic.read()
            self._refuse_others(committed)
            if committed is None or committed.egress != self._name:
                # Older egresses that wake up are told. What was delivered stays as it is.
                committed = self._committed(committed.reached if committed else None)
                producer.begin_transaction()
                for key, value in committed.records({}):
                    producer.produce(self._topic.name, value, key, 0)
                self._insist(producer.commit_transaction)
        except KafkaException as exception:
            self._close(producer)
            if not self._named and exception.args[0].code() in _FENCED:
                raise SinkError("another egress of this link takes over at the same time") from exception
            raise NotReadyError(exception.args[0].str()) from exception
        except BaseException:
            self._close(producer)
            raise
        self.producer, self._open, self._named = producer, True, True
        return committed

    def _refuse_others(self, committed: Committed | None) -> None:
        if not self._named:
            return
        if committed is None:
            raise SinkError(f"topic {self._topic.name!r} was deleted or emptied while this egress used it")
        if committed.egress != self._name:
            raise SinkError("another egress of this link has taken over")

    def _make(self) -> Producer:
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

    def _flush(self) -> None:
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while self.failure is None and len(self.producer) and time.monotonic() < deadline:
            trio.from_thread.check_cancelled()
            self._call(self.producer.flush, STEP_S)

    def _call(self, request: Callable[[float], object], timeout_s: float) -> None:
        try:
            _calling_back(request, timeout_s)
        except KafkaException as exception:
            self.failure = exception.args[0]

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.failure = error
        else:
            self._watch.on_error(error)

    def _on_progress(self, error: KafkaError | None, message: Message) -> None:
        self.failure = self.failure or error


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
