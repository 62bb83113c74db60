"""The configuration of `gapconn dedup`: one TOML file of its own, read like that of a pair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import attrs
from attrs.validators import ge, le

from gapconn.config import NAME_ALLOWED, Admin, Log, name_is_plain, option
from gapconn.errors import ConfigError
from gapconn.kafka_client import check_settings
from gapconn.sinks.udp import UdpSinkConfig
from gapconn.sources.udp import UdpSourceConfig
from gapconn.structuring import Given, structure
from gapconn.tables import Problems, Tables, read_tables
from gapconn.units import Bytes, Seconds
from gapconn.wording import suggestion

TOPIC_PLACE = "{topic}"
_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")

_RESERVED = {
    "bootstrap.servers": "has its own key, bootstrap_servers",
    "group.id": "has its own key, group_id",
    "transactional.id": "is that of the deduplicator: it keeps a second instance out",
    "isolation.level": "is read_committed: the state rests on it",
    "auto.offset.reset": "is the earliest, and said in the log",
    "enable.auto.commit": "is off: offsets are committed with the output",
    "enable.auto.offset.store": "is off: offsets are committed with the output",
    "enable.partition.eof": "is used inside",
    "enable.idempotence": "is on: transactions rest on it",
    "acks": "is all: transactions rest on it",
    "request.required.acks": "is all: transactions rest on it",
    "partitioner": "is murmur2_random, that of Kafka's Java client; see the key partition",
}


def _goes_with(identity: str, words: str) -> Any:
    def check(dedup: Any, attribute: attrs.Attribute[str], value: str) -> None:
        if dedup.identity == identity and not value:
            raise ValueError(f'missing, and identity = "{identity}" needs it')
        if value and dedup.identity != identity:
            raise ValueError(f'no use for it while identity is not "{identity}"')
        if value and attribute.name == "field" and not all(value.split(".")):
            raise ValueError("has an empty name between its dots")

    check.__doc__ = words
    return check


def _only_with_origin(dedup: Dedup, attribute: attrs.Attribute[Seconds], value: Seconds) -> None:
    if value and dedup.identity != "origin":
        raise ValueError('only identity = "origin" tells what comes before what')


@attrs.frozen(kw_only=True)
class Dedup:
    """`[dedup]`: how copies are known, and when a link has failed."""

    name: str = option(
        help="Name of the deduplicator. No other one at the same cluster may have it: its consumer group, its state "
        "and its right to write go by it.",
        allowed=NAME_ALLOWED,
        validator=name_is_plain,
    )
    identity: Literal["origin", "header", "field", "hash"] = option(
        default="origin",
        help="What two copies of a record have in common: the header `gapconn-origin` that the Kafka sink adds, "
        "another header, a field of a JSON value, or all of key and value (then two equal records are one).",
    )
    header: str = option(
        default="",
        help='Name of the header for `identity = "header"`; of several, the last counts.',
        validator=_goes_with("header", "given where it is needed, and only there"),
    )
    field: str = option(
        default="",
        help='Path of the field for `identity = "field"`, such as `order.id`.',
        validator=_goes_with("field", "given where it is needed, and only there"),
    )
    window: Seconds = option(
        default=Seconds(600.0),
        help="For identities other than `origin`: how long an id is remembered. A copy that comes later passes.",
        allowed='"1s" to "720h"',
        validator=[ge(1), le(30 * 86400)],
    )
    window_records: int = option(
        default=1_000_000,
        help="For identities other than `origin`: at least so many of the last ids are remembered, for as long as "
        "`window` says; each takes about 120 bytes of memory.",
        allowed="1 to 20000000",
        validator=[ge(1), le(20_000_000)],
    )
    holes_max: int = option(
        default=10_000,
        help="For `origin`: so many holes between the offsets that came are remembered for each source partition. The "
        "oldest are forgotten, and what comes for them later is dropped.",
        allowed="1 to 100000",
        validator=[ge(1), le(100_000)],
    )
    hold: Seconds = option(
        default=Seconds(0),
        help="For `origin`: how long a record that is ahead waits for earlier ones that another link may bring. With 0 "
        "the first copy passes at once, and what fills a hole later has the header `gapconn-late`.",
        allowed='0 to "10 min"',
        validator=[le(600), _only_with_origin],
    )
    hold_bytes: Bytes = option(
        default=Bytes(64 << 20),
        help="Memory for records that wait; when it is full they wait no longer.",
        allowed='"64 KiB" to "4 GiB"',
        validator=[ge(64 << 10), le(4 << 30)],
    )
    unidentified: Literal["pass", "drop", "fail"] = option(
        default="pass", help="What to do with a record that has no id; it is counted in any case."
    )
    silent_after: Seconds = option(
        default=Seconds(30.0),
        help="A link that has brought nothing for so long, while others have brought something new, raises an alarm.",
        allowed='"1s" to "24h"',
        validator=[ge(1), le(86400)],
    )
    lag_after: Seconds = option(
        default=Seconds(300.0),
        help="For `origin`: a link that is so far behind the others raises an alarm.",
        allowed='"1s" to "24h"',
        validator=[ge(1), le(86400)],
    )
    lag_offsets: int = option(
        default=1_000_000, help="The same, counted in offsets.", allowed="1 or more", validator=ge(1)
    )

    @property
    def signature(self) -> str:
        """What a stored state must have been made with to be of use."""
        return f"{self.identity} {self.header or self.field}".strip()


@attrs.frozen(kw_only=True)
class Kafka:
    """`[kafka]`: the cluster that has inputs, output and state, for inputs of type `kafka`."""

    bootstrap_servers: str = option(help="Brokers to start from: host:port, several separated by commas.")
    group_id: str = option(
        default="", help="Consumer group that shows how far the inputs were read; `gapconn-dedup-NAME` without it."
    )
    state_topic: str = option(
        default="",
        help="Compacted topic of one partition with the state; `gapconn-dedup-NAME-state` without it. It is created "
        "where it does not exist.",
    )
    commit_interval: Seconds = option(
        default=Seconds(0.1),
        help="How often a transaction is committed: readers see records only then.",
        allowed='"10ms" to "10s"',
        validator=[ge(0.01), le(10)],
    )
    client: dict[str, Any] = option(
        factory=dict, secret=True, help="Any further setting of librdkafka, such as those for TLS and SASL."
    )

    @bootstrap_servers.validator
    def _check_given(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not value:
            raise ValueError("must not be empty")

    @state_topic.validator
    def _check_state_topic(self, attribute: attrs.Attribute[str], value: str) -> None:
        if value and not _LEGAL_TOPIC.fullmatch(value):
            raise ValueError('may have letters, digits, ".", "_" and "-", and nothing else')

    @client.validator
    def _check_client(self, attribute: attrs.Attribute[dict[str, Any]], value: dict[str, Any]) -> None:
        check_settings(value, _RESERVED)


def _is_a_topic(_: object, attribute: object, value: str) -> None:
    if not _LEGAL_TOPIC.fullmatch(value.replace(TOPIC_PLACE, "x")) or value.count(TOPIC_PLACE) > 1:
        raise ValueError('may have letters, digits, ".", "_", "-" and {topic} once, and nothing else')


@attrs.frozen(kw_only=True)
class KafkaInput:
    """Keys of `[[input]]` with `type = "kafka"`, which is the default."""

    topic: str = option(
        help='Topic that an egress writes; with "{topic}" in it, as in the `[sink]` of that egress, all that fit.',
        validator=_is_a_topic,
    )

    def place_of(self, topic: str) -> str | None:
        """What stands for `{topic}` in this name (the name itself without a place for it); None if it is another's."""
        if TOPIC_PLACE not in self.topic:
            return topic if topic == self.topic else None
        before, after = self.topic.split(TOPIC_PLACE)
        if not (topic.startswith(before) and topic.endswith(after)) or len(topic) <= len(before) + len(after):
            return None
        return topic[len(before) : len(topic) - len(after)]


@attrs.frozen(kw_only=True)
class KafkaOutput:
    """Keys of `[output]` with `type = "kafka"`, which is the default."""

    topic: str = option(
        default=TOPIC_PLACE,
        help='Topic to write to; "{topic}" in it stands for what stood for it in the name of the input.',
        validator=_is_a_topic,
    )
    partition: Literal["same", "key"] = option(
        default="same",
        help="Write to the partition with the number that it has in the input, or choose it by the key as Java clients "
        "do.",
    )


@attrs.frozen(kw_only=True)
class Input:
    """One `[[input]]`."""

    link: str
    """Name of the link that it came over. Several inputs may be of one link."""
    config: KafkaInput | UdpSourceConfig


@attrs.frozen(kw_only=True)
class _InputBase:
    link: str = option(
        help="Name of the link that these records came over, for counts and alarms.",
        allowed=NAME_ALLOWED,
        validator=name_is_plain,
    )


@attrs.frozen(kw_only=True)
class DedupFile:
    """Everything in a file."""

    dedup: Dedup
    kafka: Kafka | None
    """None where the inputs are datagrams."""
    inputs: list[Input]
    output: KafkaOutput | UdpSinkConfig
    admin: Admin | None
    log: Log

    @property
    def links(self) -> list[str]:
        """Names of the links, in the order of the file."""
        return list(dict.fromkeys(each.link for each in self.inputs))

    @property
    def group_id(self) -> str:
        """The consumer group."""
        return (self.kafka.group_id if self.kafka else "") or self.transactional_id

    @property
    def transactional_id(self) -> str:
        """The right to write: who takes it last has it."""
        return f"gapconn-dedup-{self.dedup.name}"

    @property
    def state_topic(self) -> str:
        """Where the state is."""
        return (self.kafka.state_topic if self.kafka else "") or f"{self.transactional_id}-state"

    def target_of(self, topic: str) -> tuple[str, str] | None:
        """Link and output topic of an input topic; None when it is none."""
        for each in self.inputs:
            if isinstance(each.config, KafkaInput) and isinstance(self.output, KafkaOutput):
                place = each.config.place_of(topic)
                if place is not None and topic != self.state_topic:
                    return each.link, self.output.topic.replace(TOPIC_PLACE, place)
        return None


INPUT_TYPES: Mapping[str, Any] = {"kafka": KafkaInput, "udp": UdpSourceConfig}
OUTPUT_TYPES: Mapping[str, Any] = {"kafka": KafkaOutput, "udp": UdpSinkConfig}
_SECTIONS = ("dedup", "kafka", "output", "admin", "log")
_INPUT = "input"


def load_dedup(path: Path, environ: Mapping[str, str]) -> DedupFile:
    """Read the file at `path`, overridden by `environ`.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: Problems = {section: [] for section in ("", *_SECTIONS, _INPUT)}
    tables = read_tables(path, environ, _SECTIONS, problems, lists=(_INPUT,))
    found: list[str] = []
    dedup = structure(Dedup, tables.get("dedup", {}), label=f"{path}: dedup", problems=problems["dedup"])
    log = structure(Log, tables.get("log", {}), label=f"{path}: log", problems=problems["log"])
    admin = (
        structure(Admin, tables["admin"], label=f"{path}: admin", problems=problems["admin"])
        if "admin" in tables
        else None
    )
    inputs = list(_inputs(path, tables, problems[_INPUT]))
    output = _typed(f"{path}: output", tables.get("output", {}), OUTPUT_TYPES, problems["output"])
    kafka = None
    if "kafka" in tables or not isinstance(output, UdpSinkConfig):
        kafka = structure(Kafka, tables.get("kafka", {}), label=f"{path}: kafka", problems=problems["kafka"])
    found = [problem for of_section in problems.values() for problem in of_section]
    if found or dedup is None or log is None or output is None:
        raise ConfigError(found)
    file = DedupFile(dedup=dedup, kafka=kafka, inputs=inputs, output=output, admin=admin, log=log)
    found = [f"{path}: {problem}" for problem in _misfits(file)]
    if found:
        raise ConfigError(found)
    return file


def _inputs(path: Path, tables: Tables, problems: list[str]) -> Iterator[Input]:
    names = [name for name in tables if name.startswith(f"{_INPUT}[")]
    if not names and not problems:
        problems.append(f"{path}: input: there is no [[input]], and it takes one for each link")
    for name in names:
        table = dict(tables[name])
        mine = {key: table.pop(key) for key in ("link",) if key in table}
        base = structure(_InputBase, mine, label=f"{path}: {name}", problems=problems)
        config = _typed(f"{path}: {name}", table, INPUT_TYPES, problems)
        if base is not None and config is not None:
            yield Input(link=base.link, config=config)


def _typed(label: str, table: Mapping[str, Given], types: Mapping[str, Any], problems: list[str]) -> Any:
    """The model that the key `type` asks for."""
    table = dict(table)
    given = table.pop("type", None)
    kind = given.candidates[0] if given is not None and given.candidates else "kafka"
    if kind not in types:
        near = suggestion(str(kind), types)
        problems.append(f"{label}.type: unknown type{near}: got {kind!r}, allowed: {', '.join(types)}")
        return None
    return structure(cast(Any, types[kind]), table, label=label, problems=problems)


def _misfits(file: DedupFile) -> Iterator[str]:
    """What does not go together."""
    if len(file.links) < 2:
        yield (
            "input: all inputs are of one link: one copy needs no deduplicator (for what arrives twice over one link "
            "there is [sink.dedup] at the egress)"
        )
        return
    output = file.output
    if isinstance(output, UdpSinkConfig):
        if any(isinstance(each.config, KafkaInput) for each in file.inputs):
            yield 'output.type: is "udp", so every input must have type = "udp"'
        if file.dedup.identity in ("origin", "header"):
            yield f'dedup.identity: is "{file.dedup.identity}", but datagrams have no headers, allowed: "field", "hash"'
        return
    if any(not isinstance(each.config, KafkaInput) for each in file.inputs):
        yield 'output.type: is "kafka", so every input must have type = "kafka"'
        return
    configs = [each.config for each in file.inputs if isinstance(each.config, KafkaInput)]
    for number, config in enumerate(configs):
        if any(config.topic == other.topic for other in configs[:number]):
            yield f"input[{number}].topic: {config.topic!r} is the topic of another input too"
        if TOPIC_PLACE in output.topic and TOPIC_PLACE not in config.topic:
            yield (
                f"input[{number}].topic: {config.topic!r} has no {TOPIC_PLACE}, but output.topic = {output.topic!r} "
                "needs to know what stands for it: name the topic in output.topic"
            )
        elif config.place_of(output.topic.replace(TOPIC_PLACE, "x")) is not None:
            yield f"output.topic: {output.topic!r} would be read again by input[{number}].topic = {config.topic!r}"
