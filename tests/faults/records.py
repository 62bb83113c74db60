"""Records that prove themselves: each says which topic, partition and sequence it is of, and has a check."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import attrs
import xxhash
from confluent_kafka import KafkaError, KafkaException, Message, Producer

CHECK_BYTES: Final = 8
FILLER_BYTES_MAX: Final = 600
FLUSH_S: Final = 120.0
"""How long what was produced may take to be acknowledged, with a broker that was killed meanwhile."""
SLICE_S: Final = 0.01

_FILLER: Final = random.Random(0).randbytes(1 << 16)


def make_value(topic: str, partition: int, sequence: int) -> bytes:
    """The record of that place, of some length between a few bytes and `FILLER_BYTES_MAX` more."""
    draw = (sequence * 2_654_435_761 + partition * 40_503) & 0xFFFF_FFFF
    start, length = draw >> 17, draw % FILLER_BYTES_MAX
    content = b"%s/%d/%d/%s" % (topic.encode(), partition, sequence, _FILLER[start : start + length])
    return content + xxhash.xxh3_64_digest(content)


def read_value(value: bytes | None) -> tuple[str, int, int] | None:
    """Topic, partition and sequence; None when the record is not, to the byte, one that was made."""
    if value is None or xxhash.xxh3_64_digest(value[:-CHECK_BYTES]) != value[-CHECK_BYTES:]:
        return None
    topic, partition, sequence, _ = value.split(b"/", 3)
    place = topic.decode(), int(partition), int(sequence)
    return place if make_value(*place) == value else None


@attrs.define(eq=False)
class Load:
    """Appends records to all partitions of a topic in turn, at a rate, until told that it is enough.

    It goes on over restarts of the broker, without gaps and duplicates in the topic. `run` and `finish` block: call
    them in a thread.
    """

    address: str
    topic: str
    partitions: int
    records_per_second: float
    produced: int = 0
    """In all partitions together."""
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    _enough: threading.Event = attrs.field(factory=threading.Event)
    _failures: list[str] = attrs.field(factory=list)
    _producer: Producer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        fixed = {
            "bootstrap.servers": self.address,
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "linger.ms": 2,
            "log_level": 0,
        }
        self._producer = Producer({**fixed, **self.settings, "error_cb": self._note_error})

    def run(self) -> None:
        """Produce until `stop` is called."""
        began, before = time.monotonic(), self.produced
        while not self._enough.is_set():
            due = before + int((time.monotonic() - began) * self.records_per_second)
            self.append(min(max(0, due - self.produced), 1000))
            self._producer.poll(SLICE_S)

    def append(self, count: int) -> None:
        """Produce so many, and do not wait for them."""
        for number in range(self.produced, self.produced + count):
            sequence, partition = divmod(number, self.partitions)
            value = make_value(self.topic, partition, sequence)
            while True:
                try:
                    self._producer.produce(
                        self.topic, value, b"%d" % (sequence % 100), partition, on_delivery=self._note_report
                    )
                    break
                except BufferError:
                    self._producer.poll(SLICE_S)
            self.produced += 1

    def stop(self) -> None:
        """Let `run` return soon."""
        self._enough.set()

    def finish(self) -> None:
        """Wait until all that was produced is acknowledged.

        Raises:
            AssertionError: it is not, so the topic is not what the ledger takes it for.
        """
        assert self._producer.flush(FLUSH_S) == 0, "the broker did not acknowledge everything"
        assert not self._failures, self._failures[:3]

    @property
    def counts(self) -> dict[int, int]:
        """Records by partition."""
        return {p: len(range(p, self.produced, self.partitions)) for p in range(self.partitions)}

    def _note_report(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failures.append(str(error))

    def _note_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failures.append(str(KafkaException(error)))
