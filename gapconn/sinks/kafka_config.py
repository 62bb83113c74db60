"""The keys of a Kafka sink, and what they rule out."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import attrs
from attrs.validators import ge, le

from gapconn.config import option, subsection
from gapconn.dedup.repeats import SinkDedup
from gapconn.errors import SinkError
from gapconn.kafka_client import check_settings
from gapconn.units import Bytes, Seconds

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")

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
}

_RESERVED_AT_LEAST_ONCE = {
    "transactional.id": 'cannot be used: batches are accepted one by one, unless delivery = "exactly-once"',
    "transaction.timeout.ms": 'goes with delivery = "exactly-once"',
}

_RESERVED_EXACTLY_ONCE = {
    "transactional.id": "is gapconn- and the name of the link: that is what keeps an older egress out",
    "isolation.level": "is read_committed: what was not committed was not delivered",
    "group.id": "is not used: nothing is read but the topic of progress_topic",
    "enable.auto.commit": "is off: the topic of progress_topic is read from its beginning",
    "auto.offset.reset": "is earliest: the topic of progress_topic is read from its beginning",
}

TRANSACTION_TIMEOUT_MS: Final = 60_000
"""How long a transaction may stay open, such as that of an egress that was killed: so long it holds up who reads
`read_committed`, unless the next egress ends it. A broker's restart should fit."""
_TRANSACTION_TIMEOUT_MS_MIN: Final = 10_000
_TRANSACTION_TIMEOUT_MS_MAX: Final = 900_000
"""What brokers allow, unless told otherwise (`transaction.max.timeout.ms`)."""


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
    delivery: Literal["at-least-once", "exactly-once"] = option(
        default="at-least-once",
        help="With exactly-once, records are written in transactions together with how far the link has come, so that "
        "no kill and no restart leaves one twice or out, as consumers with isolation.level=read_committed see it.",
    )
    transaction_interval: Seconds = option(
        default=Seconds(0.1),
        help="With exactly-once: for how long records are gathered in one transaction. They can be read at its end.",
        allowed='"1ms" to "5s"',
        validator=[ge(0.001), le(5)],
    )
    progress_topic: str = option(
        default="__gapconn-{link}",
        help='With exactly-once: compacted topic for how far the link has come; "{link}" stands for its name. It is '
        "created if it is missing.",
    )
    in_flight_bytes: Bytes = option(
        default=Bytes(8 << 20),
        help="How much may be on its way to the brokers without acknowledgement. A transaction takes half of it.",
    )
    client: dict[str, Any] = option(
        factory=dict, secret=True, help="Any further setting of librdkafka, such as those for TLS and SASL."
    )
    dedup: SinkDedup = subsection(SinkDedup, help="Copies that come over this link are left out.")

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
        once = self.delivery == "exactly-once"
        check_settings(value, _RESERVED | (_RESERVED_EXACTLY_ONCE if once else _RESERVED_AT_LEAST_ONCE))
        timeout_ms = value.get("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        if not str(timeout_ms).isdecimal() or not (
            _TRANSACTION_TIMEOUT_MS_MIN <= int(timeout_ms) <= _TRANSACTION_TIMEOUT_MS_MAX
        ):
            raise ValueError(
                f"transaction.timeout.ms must be {_TRANSACTION_TIMEOUT_MS_MIN} to {_TRANSACTION_TIMEOUT_MS_MAX}"
            )

    @progress_topic.validator
    def _check_progress_topic(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not _LEGAL_TOPIC.fullmatch(value.replace("{link}", "x")):
            raise ValueError('may have letters, digits, ".", "_", "-" and {link}, and nothing else')

    @property
    def needs_order(self) -> str:
        """Why messages must come in their order; empty if they need not."""
        if self.delivery == "exactly-once":
            return 'a transaction says up to which message the target has all, so delivery = "exactly-once" needs order'
        return ""

    def target(self, stream: str, *, out_of_order: bool = False) -> str:
        """The topic for the records of `stream`.

        Args:
            stream: Their topic or stream at the source.
            out_of_order: They come late or as repair.

        Raises:
            SinkError: Kafka allows no such topic.
        """
        if out_of_order and self.late_topic is not None:
            topic = self.late_topic.replace("{topic}", stream)
        else:
            topic = self.topic_map.get(stream) or self.topic.replace("{topic}", stream)
        if not _LEGAL_TOPIC.fullmatch(topic):
            raise SinkError(
                f"records of {stream!r} cannot go to a topic {topic!r}, which Kafka does not allow: in [sink], give a "
                "topic without {topic}, or an entry of topic_map"
            )
        return topic


def _check_template(topic: str) -> None:
    if not _LEGAL_TOPIC.fullmatch(topic.replace("{topic}", "x")):
        raise ValueError('may have letters, digits, ".", "_", "-" and {topic}, and nothing else')
