"""How far a link has come, kept in a compacted topic of the target cluster (spec/exactly_once.md).

    ["progress"]                    which egress, which of its transactions, and its progress without positions
    ["position", stream, partition] how far that stream partition was delivered

Keys and values are JSON, so that an operator can read them. Each transaction writes the first record anew, and of the
others those that changed. All calls block: they are made in worker threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import attrs
import msgspec
import trio
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # exported without saying so
from confluent_kafka.cimpl import NewTopic

from gapconn.errors import SinkError
from gapconn.kafka_client import BrokerWatch, library_settings
from gapconn.plugins import Context
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX
from gapconn.sinks import Reached
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sinks.kafka_records import REQUEST_TIMEOUT_S

ANSWER_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 20.0
"""Without a record for so long, reading is tried anew."""
TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact",
    # A start reads all of it. Only what is not written any more can be compacted: so little, and soon.
    "segment.bytes": str(8 << 20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": "600000",
}
_HEAD_KEY: Final = b'["progress"]'


class NotReadyError(Exception):
    """The cluster does not answer, or the topic is not there: trying again may help."""


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The value of the record with the key `["progress"]`."""

    link_id: int
    egress: str
    transaction: int
    epoch: int = 0
    next_message: int = 0
    next_record: int = 0
    repaired: list[tuple[str, int, list[tuple[int, int]]]] = []
    late: list[tuple[int, int]] = []


class _Position(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a record with a key `["position", stream, partition]`."""

    epoch: int
    chain: int
    position: int


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_position = msgspec.json.Decoder(_Position).decode
_decode_position_key = msgspec.json.Decoder(tuple[str, str, int]).decode


@attrs.frozen(kw_only=True)
class Committed:
    """What the topic says."""

    link_id: int
    egress: str
    """The process that wrote it: a name that no other has."""
    transaction: int
    """Number of its transaction."""
    reached: Reached | None
    """None if nothing was delivered yet."""

    def records(self, positions: Mapping[tuple[str, int], Standing]) -> list[tuple[bytes, bytes]]:
        """Keys and values to be written; of the positions, these."""
        head = _Head(link_id=self.link_id, egress=self.egress, transaction=self.transaction)
        if self.reached is not None:
            progress = self.reached.progress
            head = msgspec.structs.replace(
                head,
                epoch=progress.epoch,
                next_message=progress.next_message,
                next_record=progress.next_record,
                repaired=[(*place, list(ranges)) for place, ranges in self.reached.repaired.items()],
                late=list(self.reached.late),
            )
        encode = msgspec.json.encode
        return [
            (_HEAD_KEY, encode(head)),
            *(
                (
                    encode(["position", *place]),
                    encode(_Position(epoch=each.epoch, chain=each.chain, position=each.position)),
                )
                for place, each in positions.items()
            ),
        ]


class ProgressTopic:
    """The topic of one link.

    Attributes:
        name: Of the topic.
    """

    def __init__(self, config: KafkaSinkConfig, context: Context, watch: BrokerWatch) -> None:
        self.name = config.progress_topic.replace("{link}", context.link)
        self._config = config
        self._context = context
        self._watch = watch
        self._checked = False

    def prepare(self) -> None:
        """Have the topic, and have it compacted.

        Raises:
            NotReadyError: it is not there, and cannot be made now.
            SinkError: it does not keep what is written to it.
        """
        if self._checked:
            return
        admin = AdminClient(self._settings({}))
        try:
            if self.name not in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics:
                [created] = admin.create_topics([NewTopic(self.name, 1, config=TOPIC_SETTINGS)]).values()
                created.result(ANSWER_TIMEOUT_S)
                self._context.log.info("progress_topic_created", topic=self.name)
                self._checked = True
                return
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise NotReadyError(f"topic {self.name!r}: {error.args[0].str()}") from error
        self._watch.answered()
        self._check_policy(admin)
        self._checked = True

    def _check_policy(self, admin: AdminClient) -> None:
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.name)
        try:
            [described] = admin.describe_configs([resource]).values()
            policy = described.result(ANSWER_TIMEOUT_S)["cleanup.policy"].value
        except KafkaException as error:
            # Only for safety: a client may lack the right to ask.
            self._watch.warn("progress_topic_unchecked", topic=self.name, error=error.args[0].str())
            return
        if policy != "compact":
            raise SinkError(
                f"topic {self.name!r} has cleanup.policy={policy}, so Kafka deletes from it how far link"
                f" {self._context.link!r} has come: set cleanup.policy=compact"
            )

    def read(self) -> Committed | None:
        """All that was committed; None if nothing was.

        Raises:
            NotReadyError: it could not be read to its end.
            SinkError: it belongs to another link, or somebody else wrote there.
        """
        head: _Head | None = None
        positions: dict[tuple[str, int], Standing] = {}
        fixed = {
            "group.id": f"gapconn-{self._context.link}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
        consumer = Consumer(self._settings(fixed))
        try:
            consumer.assign([TopicPartition(self.name, 0, OFFSET_BEGINNING)])
            deadline = time.monotonic() + READ_TIMEOUT_S
            at_end = False
            while not at_end:
                trio.from_thread.check_cancelled()
                for message in consumer.consume(10_000, 0.1):
                    if (error := message.error()) is not None:
                        at_end = at_end or error.code() == KafkaError._PARTITION_EOF
                        if not at_end:
                            self._watch.warn("request_failed", error=error.str())
                        continue
                    deadline = time.monotonic() + READ_TIMEOUT_S
                    head = self._take(message, positions) or head
                if time.monotonic() > deadline:
                    raise NotReadyError(f"topic {self.name!r} cannot be read")
        except KafkaException as error:
            raise NotReadyError(f"topic {self.name!r}: {error.args[0].str()}") from error
        finally:
            consumer.close()
        self._watch.answered()
        return self._committed(head, positions)

    def _take(self, message: Message, positions: dict[tuple[str, int], Standing]) -> _Head | None:
        key, value = message.key() or b"", message.value()
        try:
            if key == _HEAD_KEY and value is not None:
                return _decode_head(value)
            kind, stream, partition = _decode_position_key(key)
            if kind != "position" or value is None:
                raise msgspec.ValidationError("no such record")
            position = _decode_position(value)
        except msgspec.DecodeError as error:
            raise SinkError(
                f"topic {self.name!r}, offset {message.offset()}: no egress of this version of gapconn wrote that:"
                f" {error}. Give [sink] a progress_topic that nobody else writes to"
            ) from error
        positions.pop((stream, partition), None)  # the one that was updated last comes last
        positions[stream, partition] = Standing(position.epoch, position.chain, position.position)
        return None

    def _committed(self, head: _Head | None, positions: dict[tuple[str, int], Standing]) -> Committed | None:
        if head is None:
            return None
        if head.link_id != self._context.link_id:
            raise SinkError(
                f"topic {self.name!r} says how far the link with id {head.link_id} has come, and this one has id"
                f" {self._context.link_id}: give each link a name of its own, or a progress_topic in [sink]; if you"
                " changed the link's id on purpose, delete the topic"
            )
        for place in list(positions)[: max(0, len(positions) - POSITIONS_TRACKED_MAX)]:
            del positions[place]
        reached = Reached(
            progress=Progress(
                epoch=head.epoch,
                next_message=head.next_message,
                next_record=head.next_record,
                positions=positions,
            ),
            repaired={(stream, partition): tuple(ranges) for stream, partition, ranges in head.repaired},
            late=tuple(head.late),
        )
        return Committed(
            link_id=head.link_id,
            egress=head.egress,
            transaction=head.transaction,
            reached=reached if head.epoch else None,
        )

    def _settings(self, fixed: dict[str, Any]) -> dict[str, Any]:
        defaults = {"client.id": f"gapconn-{self._context.link}"}
        fixed = {"bootstrap.servers": self._config.bootstrap_servers, **fixed}
        callbacks = {"logger": self._watch, "error_cb": self._watch.on_error}
        return {**library_settings(defaults, self._config.client, fixed), **callbacks}
