"""Who else sends to this egress: second ingresses, ingresses of other links, and what cannot be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from gapconn.protocol.registry import DropReason

STRANGERS_MAX: Final = 8
"""For each reason. Whoever sends at random addresses and numbers gets one place at the most: the steady ones stay."""


@attrs.define(kw_only=True)
class Stranger:
    """A sender of datagrams that were dropped. Times are seconds of the owner's clock."""

    reason: DropReason
    identity: int
    """The link id of a `foreign_link`, the epoch of a `conflict` or `stale_session`, else 0."""
    came_from: str
    """Its address, as the datagrams say it; empty where nobody knows."""
    datagrams: int = 0
    first_heard_s: float
    last_heard_s: float


class Strangers:
    """A bounded memory of them (GC-LIM-1)."""

    def __init__(self) -> None:
        self._by_reason: dict[DropReason, dict[tuple[int, str], Stranger]] = {}

    def __iter__(self) -> Iterator[Stranger]:
        """All that are remembered, those heard last first."""
        everyone = [each for of_reason in self._by_reason.values() for each in of_reason.values()]
        return iter(sorted(everyone, key=lambda each: -each.last_heard_s))

    def heard(self, reason: DropReason, identity: int, came_from: str, count: int, now_s: float) -> None:
        """So many datagrams of this sender were dropped."""
        of_reason = self._by_reason.setdefault(reason, {})
        stranger = of_reason.get((identity, came_from))
        if stranger is None:
            if len(of_reason) >= STRANGERS_MAX:
                del of_reason[min(of_reason, key=lambda key: of_reason[key].datagrams)]
            stranger = of_reason[identity, came_from] = Stranger(
                reason=reason, identity=identity, came_from=came_from, first_heard_s=now_s, last_heard_s=now_s
            )
        stranger.datagrams += count
        stranger.last_heard_s = now_s

    def address_of(self, reasons: frozenset[DropReason], identity: int) -> str:
        """Where datagrams of this link id or epoch came from last; empty if that is not known."""
        return next((each.came_from for each in self if each.reason in reasons and each.identity == identity), "")
