"""Who holds an ingress: it takes nothing from its source while anybody does.

A hold has an owner. `operator` is a person; `monitor:NAME` is a monitor, which renews its hold as long as it wants it.
Everybody takes away their own: so two monitors do not fight, and what an operator paused, no monitor resumes. The hold
of a monitor that is gone may be taken away by another one once it was not renewed for a while; who asks for that says
for how long.

Holds are stored, and stand over a restart of the ingress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs
from trio_util import AsyncBool

OPERATOR: Final = "operator"
HOLDS_MAX: Final = 64
"""Owners at the same time: a handful is usual, and a loop that makes up names must not fill the state."""


@attrs.frozen(kw_only=True)
class Hold:
    """One reason not to work."""

    owner: str
    reason: str
    since_s: float
    """Wall-clock time."""
    renewed_s: float
    """When its owner said so last."""

    @property
    def of_person(self) -> bool:
        """Whether only a person may take it away."""
        return not self.owner.startswith("monitor:")


class Pauses:
    """The holds of one ingress.

    Attributes:
        running: Whether nobody holds it.
    """

    def __init__(self, holds: Iterable[Hold] = (), *, clock: Callable[[], float] = time.time) -> None:
        self._holds = {hold.owner: hold for hold in holds}
        self._clock = clock
        self.running = AsyncBool(not self._holds)

    @property
    def holds(self) -> list[Hold]:
        """Those that stand, the oldest first."""
        return sorted(self._holds.values(), key=lambda hold: hold.since_s)

    def hold(self, owner: str, reason: str) -> bool:
        """Hold it, or renew the hold; whether it ran until now.

        Raises:
            ValueError: there are too many owners.
        """
        now_s = self._clock()
        before = self._holds.get(owner)
        if before is None and len(self._holds) >= HOLDS_MAX:
            raise ValueError(f"{HOLDS_MAX} others hold it already")
        self._holds[owner] = Hold(
            owner=owner, reason=reason, since_s=before.since_s if before else now_s, renewed_s=now_s
        )
        ran = bool(self.running.value)
        self.running.value = False
        return ran

    def release(self, owner: str, *, unrenewed_s: float | None = None) -> bool:
        """Take a hold away; whether there was one.

        Args:
            owner: Whose.
            unrenewed_s: Only if it was not renewed for so long, and is not that of a person.
        """
        hold = self._holds.get(owner)
        if hold is None:
            return False
        if unrenewed_s is not None and (hold.of_person or self._clock() - hold.renewed_s < unrenewed_s):
            return False
        del self._holds[owner]
        self.running.value = not self._holds
        return True

    def release_all(self) -> list[Hold]:
        """Take all away; which those were."""
        released = self.holds
        self._holds.clear()
        self.running.value = True
        return released

    def facts(self) -> list[dict[str, Any]]:
        """For `/status`."""
        now_s = self._clock()
        return [
            {
                "owner": hold.owner,
                "reason": hold.reason,
                "for_s": round(max(0.0, now_s - hold.since_s), 3),
                "renewed_s_ago": round(max(0.0, now_s - hold.renewed_s), 3),
            }
            for hold in self.holds
        ]


def delivered_at(positions: Mapping[str, int], cluster: str, topic: str, partition: int) -> int | None:
    """The next position that the egress misses; None if it was not said. Without a cluster, it is that of the link."""
    for key in (f"{cluster}/{topic}/{partition}", f"/{topic}/{partition}"):
        if key in positions:
            return positions[key]
    return None
