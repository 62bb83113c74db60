"""What both ends show of the keys of a link: which ones they have and use, never their secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric

from gapconn.admin.metrics import gauge
from gapconn.config import Pair
from gapconn.key_watch import KeyWatch


def security_status(pair: Pair, key_watch: KeyWatch | None, **key: int) -> dict[str, Any]:
    """For /status; `key` is which key an end uses or hears, by the name that says so."""
    if key_watch is None:
        return {"mode": pair.link.security.mode}
    return {
        "mode": pair.link.security.mode,
        **key,
        "keys": key_watch.overview(),
        "key_file_problem": key_watch.problem or None,
    }


def security_metrics(key_help: str, key_id: int, key_watch: KeyWatch | None) -> Iterable[Metric]:
    """For /metrics; `key_help` says what the key id is that of."""
    yield gauge("gapconn_key_id", key_help, key_id)
    yield gauge(
        "gapconn_key_file_unusable",
        "1 while the key file, as it is now, would not be accepted at a start.",
        key_watch is not None and bool(key_watch.problem),
    )
