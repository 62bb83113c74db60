"""Clients of the cluster, as the deduplicator needs them, and how their failures are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from gapconn.dedup.config import DedupFile
from gapconn.errors import DedupError
from gapconn.kafka_client import BrokerWatch, library_settings

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 5.0


class SessionFailed(Exception):  # noqa: N818 - an event between these modules, not an error for others
    """A session cannot go on; a new one may do better."""

    def __init__(self, event: str, **facts: object) -> None:
        super().__init__(event)
        self.event = event
        self.facts = facts


def ask(request: Callable[[], T]) -> T:
    """The answer to a request.

    Raises:
        SessionFailed: there is none.
    """
    try:
        return request()
    except KafkaException as exception:
        raise SessionFailed("request_failed", error=exception.args[0].str()) from exception


class Clients:
    """Makes clients with the settings of the file."""

    def __init__(self, file: DedupFile, watch: BrokerWatch) -> None:
        assert file.kafka is not None
        self._file = file
        self._kafka = file.kafka
        self._watch = watch

    def producer(
        self, *, on_delivery: Callable[[KafkaError | None, Any], None], on_fatal: Callable[[KafkaError], None]
    ) -> Producer:
        """A producer of transactions. `on_delivery` is told of what failed only."""
        own = {
            "transactional.id": self._file.transactional_id,
            "acks": "all",
            "partitioner": "murmur2_random",
            # Large records are for the broker to judge.
            "message.max.bytes": 100_000_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
            "linger.ms": 2,
        }

        def on_error(error: KafkaError) -> None:
            if error.fatal():
                on_fatal(error)
            else:
                self._watch.on_error(error)

        # This one setting is the Python client's own, which wants a truth value and no text.
        own_callbacks = {"on_delivery": on_delivery, "delivery.report.only.error": True, "error_cb": on_error}
        settings = {**self._settings(own), **own_callbacks}
        return self._made(lambda: Producer(settings))

    def consumer(self) -> Consumer:
        """A consumer of the inputs, which never chooses an offset by itself."""
        own = {
            **self._reading(),
            "auto.offset.reset": "error",
            # A full prefetch queue is looked at again soon: the default of a second starves a fast link.
            "fetch.queue.backoff.ms": 20,
            "queued.max.messages.kbytes": 16_384,
            "queued.min.messages": 10_000,
        }
        return self._made(lambda: Consumer(self._settings(own)))

    def state_reader(self) -> Consumer:
        """A consumer that says where a topic ends."""
        own = {**self._reading(), "auto.offset.reset": "earliest", "enable.partition.eof": True}
        return self._made(lambda: Consumer(self._settings(own)))

    def admin(self) -> AdminClient:
        """To make a topic."""
        return self._made(lambda: AdminClient(self._settings({})))

    def _reading(self) -> dict[str, Any]:
        return {
            "group.id": self._file.group_id,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
        }

    def _settings(self, own: dict[str, Any]) -> dict[str, Any]:
        defaults = {"client.id": self._file.transactional_id, "topic.metadata.refresh.interval.ms": 10_000}
        fixed = {"bootstrap.servers": self._kafka.bootstrap_servers, **own}
        callbacks = {"error_cb": self._watch.on_error, "logger": self._watch}
        return {**library_settings(defaults, self._kafka.client, fixed), **callbacks}

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except KafkaException as error:
            raise DedupError(f"the Kafka client refused its settings: {error.args[0].str()}") from error
