"""Every missing datagram is put to exactly one place: the parts are together what is missing, no more and no less."""

from __future__ import annotations

import attrs

from gapconn.link.host import interface_packets
from gapconn.why.counts import EgressCounts, Host, IngressCounts


@attrs.frozen(kw_only=True)
class Ledger:
    """Where the datagrams of the link went that are missing at the egress.

    The first two are known. Of the next three only the host's counters are known, in which there are others' packets
    too: they are the most that may have been lost there. What is left was lost in between, or is `unknown` where the
    kernel of the egress's host does not say behind what it dropped something.
    """

    missed: int
    unreadable: int = 0
    """Arrived, and could not be read."""
    egress_kernel: int = 0
    """Dropped by the kernel at the egress's socket."""
    egress_interface: int = 0
    ingress_kernel: int = 0
    ingress_interface: int = 0
    link: int = 0
    unknown: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """By place; together they are `missed`."""
        return {name: count for name, count in attrs.asdict(self).items() if name != "missed"}


def packets_lost(host: Host) -> int:
    """By all interfaces together."""
    return sum(interface_packets(counters) for counters in host.interfaces.values())


def ledger(egress: EgressCounts, ingress: IngressCounts | None = None) -> Ledger:
    """Put the missing datagrams to their places; without `ingress` nothing is put to the ingress's host."""
    left = egress.missed
    parts: dict[str, int] = {}

    def take(place: str, most: int) -> None:
        nonlocal left
        parts[place] = max(0, min(left, most))
        left -= parts[place]

    take("unreadable", egress.missed_unreadable)
    take("egress_kernel", egress.missed_here if egress.tells_drops else egress.packets_dropped)
    take("egress_interface", egress.host.coincident)
    if ingress is not None:
        take("ingress_kernel", ingress.host.udp.get("SndbufErrors", 0))
        take("ingress_interface", packets_lost(ingress.host))
    certain = egress.tells_drops or not egress.packets_dropped
    take("link" if certain else "unknown", left)
    return Ledger(missed=egress.missed, **parts)
