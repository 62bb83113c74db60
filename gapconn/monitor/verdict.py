"""What an answer of `/health` means for a pair. Pure."""

from __future__ import annotations

from typing import Any, Final

import attrs

HANGS: Final = {
    "sink_hangs": "its sink hangs: it accepts nothing and tries nothing",
    "receiver_hangs": "its receiver hangs: datagrams arrive, and it takes none",
}


@attrs.frozen(kw_only=True)
class EndReport:
    """What one check of one end brought."""

    answered: bool
    facts: dict[str, Any] = attrs.field(factory=dict)
    """What `/health` said."""
    problems: list[str] = attrs.field(factory=list)
    why: str = ""
    """Why there was no answer."""
    took_s: float = 0.0

    @property
    def alarms(self) -> list[str]:
        """Names of what is wrong, by its own account."""
        alarms = self.facts.get("alarms", [])
        return [str(alarm) for alarm in alarms] if isinstance(alarms, list) else []

    @property
    def link(self) -> str:
        """The link that it is an end of."""
        return str(self.facts.get("link", ""))

    @property
    def holds(self) -> dict[str, float]:
        """Of an ingress: who holds it, and how long ago each said so."""
        return {str(hold["owner"]): float(hold["renewed_s_ago"]) for hold in self.facts.get("holds", [])}


def failure_of(
    egress: EndReport, *, ingress_answers_for_s: float, sink_stalled_after_s: float, interrupted_after_s: float
) -> str | None:
    """Why the ingress of this egress must not send; None if it may.

    Args:
        egress: What it answered.
        ingress_answers_for_s: For how long its ingress has answered here; 0 if it does not, or is not asked.
        sink_stalled_after_s: From when on a target that takes nothing is a failure; 0 for never.
        interrupted_after_s: From when on a link that is interrupted, although its ingress lives, is a failure; 0 for
            never.
    """
    if not egress.answered:
        return f"it does not answer: {egress.why}"
    for alarm in egress.alarms:
        if alarm in HANGS:
            return HANGS[alarm]
    if egress.facts.get("spool_stuck"):
        return "its spool takes nothing more, so what arrives is refused"
    stalled_s = float(egress.facts.get("sink_stalled_s", 0.0))
    if sink_stalled_after_s and stalled_s >= sink_stalled_after_s:
        return f"its target has taken nothing for {stalled_s:.0f} s"
    if "link_interrupted" in egress.alarms and interrupted_after_s and ingress_answers_for_s >= interrupted_after_s:
        return "it does not hear its ingress, which lives: the gap between them is broken"
    return None
