"""What both ends show of loss: the counters that `gapconn why` judges, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs
import trio
from prometheus_client.metrics_core import Metric

from gapconn.admin.metrics import counters, gauge, gauges
from gapconn.link.host import HostWatch, interface_packets
from gapconn.resend import cannot_resend
from gapconn.why.counts import EgressCounts, Host, IngressCounts, Other, as_json, journal_totals
from gapconn.why.findings import findings
from gapconn.why.ledger import ledger

if TYPE_CHECKING:
    from gapconn.egress import Egress
    from gapconn.ingress import Ingress


def egress_losses(egress: Egress, *, journal: bool = True) -> EgressCounts:
    """What this egress knows of loss; without the totals of the journal it is quicker."""
    core, counts, events, now_s = egress.core, egress.core.counters, egress.events, trio.current_time()
    return EgressCounts(
        link_id=egress.pair.link.id,
        epoch=core.epoch,
        state=core.state.value,
        silent_s=round(core.silent_s(now_s), 3),
        interruption_timeout_s=core.interruption_timeout_s,
        heard_from=core.heard_from,
        listens_on=str(egress.socket.address),
        alarms=dict(events.alarms),
        conflicts=counts.conflicts,
        missed=core.datagrams_missed,
        missed_unreadable=core.missed_unreadable,
        missed_here=core.missed_here,
        tells_drops=egress.socket.tells_drops,
        packets_dropped=egress.socket.kernel_drops,
        buffer_bytes=egress.socket.buffer_bytes,
        buffer_wanted_bytes=egress.pair.link.receive_buffer_bytes,
        host=_host(egress.host),
        dropped={reason.name.lower(): count for reason, count in sorted(counts.dropped.items()) if count},
        others=[
            Other(
                reason=each.reason.name.lower(),
                identity=each.identity,
                came_from=each.came_from,
                datagrams=each.datagrams,
                last_heard_s=round(max(0.0, now_s - each.last_heard_s), 3),
            )
            for each in core.strangers
        ],
        rebuilt=counts.symbols_rebuilt,
        messages_lost={cause.name.lower(): count for cause, count in sorted(counts.messages_lost.items()) if count},
        messages_refused=dict(events.refused),
        records_lost=counts.records_lost,
        records_refused=events.refused_records,
        records_filtered=core.announcement.records_filtered if core.announcement else 0,
        spool_trouble=egress.queue.trouble,
        sink_type=egress.sink_type,
        sink_stalled_s=round(egress.sink_stalled_s, 3),
        sink_losses=dict(events.sink_losses),
        sink_events=dict(egress.context.counters),
        journal=journal_totals(egress.journal) if journal else {},
    )


def ingress_losses(ingress: Ingress) -> IngressCounts:
    """What this ingress knows of loss."""
    return IngressCounts(
        link_id=ingress.pair.link.id,
        epoch=ingress.core.settings.epoch,
        state=ingress.core.state.value,
        sends_to=str(ingress.pair.link.address),
        sent=ingress.core.counters.datagrams,
        refusals=dict(ingress.socket.refusals),
        host=_host(ingress.host),
        source_type=ingress.source_type,
        source_events=dict(ingress.context.counters),
        cannot_resend=cannot_resend(ingress.source_type, buffered=ingress.repeats is not None) or "",
    )


def _host(watch: HostWatch | None) -> Host:
    if watch is None:
        return Host()
    return Host(
        udp=dict(watch.grown.udp),
        backlog_dropped=watch.grown.backlog_dropped,
        interfaces={name: dict(counts) for name, counts in watch.grown.interfaces.items()},
        coincident=watch.coincident,
    )


def losses_status(counts: EgressCounts | IngressCounts) -> dict[str, Any]:
    """For /status: the counters, and what this end makes of them by itself."""
    if isinstance(counts, EgressCounts):
        book, found = attrs.asdict(ledger(counts)), findings(counts, None)
    else:
        book, found = None, findings(None, counts)
    return {
        "losses": as_json(counts),
        "why": {"datagrams": book, "findings": [{**attrs.asdict(each), "see": each.see} for each in found]},
    }


def losses_metrics(counts: EgressCounts | IngressCounts) -> Iterable[Metric]:
    """For /metrics."""
    if isinstance(counts, EgressCounts):
        yield gauges(
            "gapconn_datagrams_missed_by_place",
            "Datagrams that were sent and have not arrived, by where they were lost.",
            "place",
            ledger(counts).parts,
        )
        heard = any(
            each.reason == "foreign_link" and each.last_heard_s <= counts.interruption_timeout_s
            for each in counts.others
        )
        yield gauge("gapconn_link_foreign", "1 while an ingress of another link is heard.", heard)
    else:
        yield counters(
            "gapconn_send_refusals_total",
            "Times that the kernel did not take a burst, by error; it was tried again.",
            "error",
            counts.refusals,
        )
    yield counters(
        "gapconn_host_udp_errors_total",
        "What the kernel counted against UDP since the start of this end, of all programs on this host.",
        "kind",
        counts.host.udp,
    )
    yield counters(
        "gapconn_interface_lost_packets_total",
        "Packets that the interface of the link lost since the start of this end, of any traffic.",
        "interface",
        {name: interface_packets(values) for name, values in counts.host.interfaces.items()},
    )
