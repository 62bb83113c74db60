"""What an end of a link shows at its admin endpoint: the contract of `IngressView` and `EgressView`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric


class AdminView(Protocol):
    """What an end of a link shows. Called in Trio's thread at every request: quick, and without waiting."""

    @property
    def role(self) -> str:
        """`"ingress"` or `"egress"`."""

    @property
    def link(self) -> str:
        """Name of the link."""

    def live(self) -> list[str]:
        """What only a restart of the process mends, a sentence each. That it can be asked says the most of it."""

    def health(self) -> list[str]:
        """What is wrong, a sentence each; empty when all is well."""

    def ready(self) -> list[str]:
        """Why no data can pass right now, a sentence each; empty when it can."""

    def status(self) -> dict[str, Any]:
        """Everything that an operator may want to know, as JSON."""

    def metrics(self) -> Iterable[Metric]:
        """Families made by `gapconn.admin.metrics`; the labels `link` and `role` are added to each."""


def bodies(plain_bytes: int, crossed_bytes: int) -> dict[str, Any]:
    """What compression gains: bodies of messages before it and after it, in bytes, and how many times smaller."""
    ratio = round(plain_bytes / crossed_bytes, 2) if crossed_bytes else None
    return {"plain_bytes": plain_bytes, "bytes": crossed_bytes, "ratio": ratio}
