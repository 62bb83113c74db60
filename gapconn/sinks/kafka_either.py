"""The sink of `type = "kafka"`: one of two, as `delivery` says."""

from __future__ import annotations

from typing import Any, ClassVar

from gapconn.plugins import Carries, Context
from gapconn.sinks import Inlet, Reached
from gapconn.sinks.kafka import KafkaSink
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sinks.kafka_once import OnceKafkaSink


class EitherKafkaSink:
    """Writes records to topics, at least once or exactly once."""

    Config: ClassVar[type[Any]] = KafkaSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.RECORDS})

    def __init__(self, config: KafkaSinkConfig, context: Context) -> None:
        self._once = OnceKafkaSink(config, context) if config.delivery == "exactly-once" else None
        self._sink = self._once or KafkaSink(config, context)

    async def resume(self) -> Reached | None:
        """What the target cluster says was delivered; nothing if it is not asked to remember that."""
        return await self._once.resume() if self._once is not None else None

    async def run(self, inlet: Inlet) -> None:
        await self._sink.run(inlet)
