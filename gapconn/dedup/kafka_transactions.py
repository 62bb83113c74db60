"""Writing by transactions: everything of one is there, or nothing of it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from gapconn.dedup.kafka_clients import REQUEST_TIMEOUT_S, Clients, SessionFailed
from gapconn.errors import DedupError
from gapconn.kafka_client import BrokerWatch

ANY_PARTITION: Final = -1
STOP_TIMEOUT_S: Final = 10.0
"""How long a call may take that was under way when it was asked to stop."""

_FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
_REJECTED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
    }
)
"""Answers that another try of the same request does not change."""


class Transactions:
    """A producer and its transaction. All methods block, and raise:

    SessionFailed: this producer is of no more use; nothing of its open transaction will ever be read.
    DedupError: another instance took over, or the cluster rejects a record.
    """

    def __init__(self, clients: Clients, name: str, watch: BrokerWatch, stopping: Callable[[], bool]) -> None:
        self.open = False
        """A transaction is under way."""
        self._name = name
        self._watch = watch
        self._stopping = stopping
        self._rejected: tuple[KafkaError, Message] | None = None
        self._fatal: KafkaError | None = None
        """Why the producer has ended itself. Its calls only say that it has."""
        self._producer = clients.producer(on_delivery=self._on_delivery, on_fatal=self._on_fatal)

    def take_over(self) -> None:
        """Take the right to write; what an older instance had under way is over then."""
        self._insist(self._producer.init_transactions)

    def begin(self) -> None:
        """Begin a transaction where none is under way."""
        if not self.open:
            try:
                self._producer.begin_transaction()
            except KafkaException as exception:
                self._fail(exception.args[0])
            self.open = True

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        *,
        timestamp_ms: int = 0,
        headers: Any = None,
    ) -> None:
        """Add a record; `timestamp_ms` 0 is now."""
        while True:
            try:
                self._producer.produce(topic, value, key, partition, timestamp=timestamp_ms, headers=headers)
            except BufferError:
                self._poll(0.05)  # Reports make room.
            except KafkaException as exception:
                self._fail(exception.args[0])
            else:
                return

    def commit(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        """End the transaction, with these offsets of the consumer's group in it."""
        if offsets:
            group = consumer.consumer_group_metadata()
            self._insist(lambda timeout_s: self._producer.send_offsets_to_transaction(offsets, group, timeout_s))
        self._insist(self._producer.commit_transaction)
        self.open = False

    def serve(self) -> None:
        """Let the client library say what it has to say."""
        self._poll(0)

    def close(self) -> None:
        """Give up what is not committed, and end the producer."""
        self._producer.purge()
        if self.open:
            with contextlib.suppress(KafkaException):
                self._producer.abort_transaction(1.0)
        with warnings.catch_warnings():
            # It tries once more to abort, and says so where that fails, as it must for one that was fenced.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._producer.close()

    def _poll(self, timeout_s: float) -> None:
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exception:
            self._fail(exception.args[0])
        if self._rejected is not None:
            self._fail(self._rejected[0])

    def _insist(self, call: Callable[[float], object]) -> None:
        """Make a call, again and again while it only takes longer."""
        give_up_s = None
        while True:
            try:
                call(REQUEST_TIMEOUT_S)
            except KafkaException as exception:
                error: KafkaError = exception.args[0]
                if not error.retriable() or error.txn_requires_abort() or error.fatal():
                    self._fail(error)
                self._watch.warn("transaction_delayed", error=error.str(), effect="it is tried again")
                if self._stopping():
                    give_up_s = give_up_s or time.monotonic() + STOP_TIMEOUT_S
                    if time.monotonic() > give_up_s:
                        self._fail(error)
            else:
                return

    def _fail(self, error: KafkaError) -> None:
        """Give up, this producer or for good."""
        with contextlib.suppress(KafkaException):
            self._producer.poll(0)
        error = self._fatal or error
        if error.code() in _FENCED:
            raise DedupError(
                f"another instance of the deduplicator {self._name!r} has taken over, or this one hung for longer than "
                "a transaction may take: only one may run"
            )
        if self._rejected is not None:
            reason, message = self._rejected
            raise DedupError(
                f"the cluster rejects a record of {len(message.value() or b'')} bytes for topic {message.topic()!r}, "
                f"partition {message.partition()}: {reason.str()}. Raise max.message.bytes of that topic"
            )
        raise SessionFailed("transaction_failed", error=error.str(), effect="it goes on from what was committed last")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in _REJECTED:
            self._rejected = self._rejected or (error, message)

    def _on_fatal(self, error: KafkaError) -> None:
        self._fatal = self._fatal or error
