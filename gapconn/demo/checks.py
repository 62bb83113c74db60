"""Whether the figures add up: what the gap did against what the egress noticed, and what was sent against what came."""

from __future__ import annotations

import attrs

from gapconn.demo.ledger import EgressFacts, GapFacts, Ledger
from gapconn.demo.plan import Phase


@attrs.frozen
class Check:
    """One thing that must be so."""

    holds: bool
    text: str
    """What must be so, with its figures; true or not."""


def check_path(gap: GapFacts, egress: EgressFacts) -> list[Check]:
    """Every datagram is accounted for between the gap and the egress.

    The figures are exact unless a kernel had to drop datagrams because a process was not scheduled for too long: it
    counts buffers, of which each may hold many datagrams.
    """
    out = gap.dropped + gap.unsent
    missed = Check(
        egress.datagrams_missed == gap.harmed,
        f"the gap dropped {out:,} datagrams and flipped a bit in {gap.corrupted:,}: "
        f"the egress missed {egress.datagrams_missed:,}",
    )
    kernel_drops = gap.kernel_dropped + egress.kernel_drops
    if kernel_drops:
        missed = Check(
            egress.datagrams_missed >= gap.harmed,
            f"{missed.text}, as the kernel too dropped {kernel_drops:,} buffers (allow larger ones: net.core.rmem_max)",
        )
    arrived = Check(
        egress.datagrams == gap.forwarded if not egress.kernel_drops else egress.datagrams < gap.forwarded,
        f"the gap let {gap.forwarded:,} datagrams out: {egress.datagrams:,} came in at the egress",
    )
    doubled = Check(
        egress.datagrams_doubled == gap.duplicated or bool(kernel_drops),
        f"the gap doubled {gap.duplicated:,} datagrams: the egress threw {egress.datagrams_doubled:,} copies away",
    )
    damaged = Check(
        egress.datagrams_damaged == gap.corrupted or bool(kernel_drops),
        f"of {gap.corrupted:,} datagrams with a flipped bit the egress noticed {egress.datagrams_damaged:,}",
    )
    return [arrived, missed, damaged, doubled]


def check_alarms(ledger: Ledger) -> list[Check]:
    """The interruption was seen, and no alarm stands at the end."""
    seen = [alarm for alarm in ledger.alarms if alarm.name == "link interrupted" and alarm.phase is Phase.KILLED]
    standing = [alarm.name for alarm in ledger.alarms if alarm.cleared_at_s is None]
    return [
        Check(bool(seen), 'the egress raised "link interrupted" when the ingress was killed'),
        Check(not standing, "every alarm cleared" + (f", but not: {', '.join(standing)}" if standing else "")),
    ]


def check_sessions(ledger: Ledger) -> list[Check]:
    """What the ingress says it sent is what the egress heard that it sent."""
    killed, last = ledger.sessions[0], ledger.sessions[-1]
    return [
        Check(
            killed.settled_records >= killed.said_sent_records,
            f"the killed ingress last spoke of {killed.said_sent_records:,} records sent: "
            f"the egress has accounted for {killed.settled_records:,}",
        ),
        Check(
            last.closed_records is not None and last.closed_records == last.announced_records == last.settled_records,
            f"the second ingress sent {last.closed_records or 0:,} records: the egress heard of "
            f"{last.announced_records or 0:,} and has accounted for {last.settled_records:,}",
        ),
    ]
