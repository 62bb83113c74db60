"""What the Kafka source and the Kafka sink share: settings of the client library, and whether the brokers answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

from gapconn.plugins import Context

LOG_INTERVAL_S = 10.0
"""The same complaint is logged at most this often; what was left out is counted in the next one."""

_AWAY = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT})
_REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


def check_settings(settings: Mapping[str, Any], reserved: Mapping[str, str]) -> None:
    """Refuse settings of librdkafka that have a key of their own, or that a guarantee rests on.

    Args:
        settings: What the user gave as `client`.
        reserved: Such a setting to what is to be done instead.

    Raises:
        ValueError: a reserved one was given.
    """
    taken = [f"{name} {reserved[name]}" for name in settings if name in reserved]
    if taken:
        raise ValueError("cannot be set here: " + "; ".join(taken))


def library_settings(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One dict for librdkafka; a later layer wins. It wants truth values in lower case."""
    merged = {name: value for layer in layers for name, value in layer.items()}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in merged.items()}


class BrokerWatch:
    """Turns what librdkafka says about its brokers into events, counters and a status, without flooding the log.

    It is librdkafka's `error_cb` (`on_error`) and its `logger` (an object with `log`), so nothing of it reaches stderr.
    Used from the thread that polls the client.
    """

    def __init__(self, context: Context) -> None:
        self.away = False
        """No broker answers, as far as is known. Who can prove otherwise calls `answered`."""
        self.quiet = False
        """The client is being closed: what it says about that is of no interest."""
        self._context = context
        self._said: dict[str, tuple[float, int]] = {}
        context.status["broker"] = "connecting"

    def on_error(self, error: KafkaError) -> None:
        """An error that concerns the client as a whole; librdkafka goes on by itself unless it is fatal."""
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self._context.counters["broker_unreachable"] += 1
            self.away = True
            if self._context.status["broker"] != "refused":  # That tells more.
                self._context.status["broker"] = "unreachable"
            self.warn("broker_unreachable", error=error.str())
        elif code in _REFUSED:
            self._context.counters["broker_refused"] += 1
            self._context.status["broker"] = "refused"
            self.warn("broker_refused", error=error.str())
        elif code in _AWAY:
            self._context.counters["broker_connection_failed"] += 1
            self.warn("broker_connection_failed", error=error.str())
        else:
            self._context.counters["client_error"] += 1
            self.warn("client_error_reported", code=error.name(), error=error.str())

    def answered(self) -> None:
        """A broker has answered."""
        if self.away:
            self.away = False
            self._said.clear()
            self._context.log.info("broker_restored")
        self._context.status["broker"] = "connected"

    def log(self, level: int, text: str, facility: str, client: str, message: str) -> None:
        """A log line of librdkafka; `level` is one of the logging module's."""
        # FAIL and ERROR come as errors too; CONFWARN is about settings that were chosen knowingly.
        if level >= 30 and facility not in ("FAIL", "ERROR", "CONFWARN"):
            self.warn("client_reported", key=facility, facility=facility, text=message)
        else:
            self._context.log.debug("client_reported", facility=facility, text=message)

    def warn(self, event: str, *, key: str = "", **values: object) -> None:
        """Log a warning, but the same `event` and `key` at most once in `LOG_INTERVAL_S`."""
        if self.quiet:
            return
        now = time.monotonic()
        last, left_out = self._said.get(event + key, (-LOG_INTERVAL_S, 0))
        if now - last < LOG_INTERVAL_S:
            self._said[event + key] = (last, left_out + 1)
            return
        self._said[event + key] = (now, 0)
        if left_out:
            values["left_out"] = left_out
        self._context.log.warning(event, **values)
