"""What an end of a link shows at its admin endpoint: the contract of `IngressView` and `EgressView`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import attrs
from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


@attrs.frozen
class Page:
    """A page that only one kind of end has."""

    path: str
    meaning: str
    """For the index: a few words."""
    endpoint: Endpoint
    method: Literal["GET", "POST"] = "GET"


class AdminView(Protocol):
    """What an end of a link shows. Called in Trio's thread at every request: quick, and without waiting."""

    @property
    def role(self) -> str:
        """`"ingress"`, `"egress"` or `"monitor"`."""

    @property
    def link(self) -> str:
        """Name of the link; empty where there is not one."""

    def live(self) -> list[str]:
        """What only a restart of the process mends, a sentence each. That it can be asked says the most of it."""

    def health(self) -> list[str]:
        """What is wrong, a sentence each; empty when all is well."""

    def health_facts(self) -> dict[str, Any]:
        """What a program that watches needs beside that, as JSON: part of `/health`."""

    def ready(self) -> list[str]:
        """Why no data can pass right now, a sentence each; empty when it can."""

    def status(self) -> dict[str, Any]:
        """Everything that an operator may want to know, as JSON."""

    def metrics(self) -> Iterable[Metric]:
        """Families made by `gapconn.admin.metrics`; the labels `link` and `role` are added to each."""

    def pages(self) -> Sequence[Page]:
        """Those that only this kind of end has."""


def bodies(plain_bytes: int, crossed_bytes: int) -> dict[str, Any]:
    """What compression gains: bodies of messages before it and after it, in bytes, and how many times smaller."""
    ratio = round(plain_bytes / crossed_bytes, 2) if crossed_bytes else None
    return {"plain_bytes": plain_bytes, "bytes": crossed_bytes, "ratio": ratio}
