"""What an egress shows of itself."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response

from gapconn import __version__
from gapconn.admin.losses import egress_losses, losses_metrics, losses_status
from gapconn.admin.metrics import counter, counters, gauge
from gapconn.admin.pages import json_response
from gapconn.admin.security import security_metrics, security_status
from gapconn.admin.view import Page, bodies
from gapconn.bundle import as_json, bundle_of
from gapconn.events_log import STATE_ALARMS
from gapconn.protocol.registry import DropReason, LossCause, Phase
from gapconn.protocol.states import ReceiverState

if TYPE_CHECKING:
    from gapconn.egress import Egress


SINK_STALLED_S = 10.0
"""A sink that accepts nothing for so long, with messages waiting, makes the egress not ready."""


class EgressView:
    """An `AdminView` of an egress."""

    role = "egress"

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self.link = egress.pair.link.name

    def live(self) -> list[str]:
        """What hangs. No restart mends an alarm, or a target that is away."""
        return list(self._hangs.values())

    def health(self) -> list[str]:
        """The alarms that stand (link interrupted, conflict, unverified), and what hangs."""
        return [*self._egress.events.alarms.values(), *self._hangs.values()]

    @property
    def _hangs(self) -> dict[str, str]:
        return self._egress.hang.found(trio.current_time())

    def health_facts(self) -> dict[str, Any]:
        """For a monitor: what is wrong by name, and for how long the sink has stood still."""
        egress = self._egress
        return {
            "role": self.role,
            "link": self.link,
            "alarms": [*egress.events.alarms, *self._hangs],
            "uptime_s": round(trio.current_time() - egress.started_at_s, 3),
            "sink_stalled_s": round(egress.sink_stalled_s, 3),
            "spool_stuck": bool(egress.queue.trouble),
            "ingress": self._ingress_phase,
            "gaps": egress.journal.positions_missing,
        }

    @property
    def _ingress_phase(self) -> str | None:
        """What the followed session says of itself; None if nothing was heard of it."""
        said = self._egress.core.announcement
        return None if said is None else Phase(said.phase).name.lower()

    def pages(self) -> list[Page]:
        """What a monitor carries over the management network."""
        return [
            Page("/positions", "what is delivered: by the sink, or safe in the spool", self._positions_page),
            Page("/gaps", "what is missing, as gapconn gaps export writes it", self._gaps_page),
        ]

    async def _positions_page(self, request: Request) -> Response:
        egress = self._egress
        cluster = egress.queue.origin
        positions = [
            {"cluster": cluster, "topic": stream, "partition": partition, "next": position}
            for (stream, partition), position in sorted(egress.delivered.next_positions().items())
        ]
        return json_response({"link": self.link, "epoch": egress.core.epoch, "positions": positions})

    async def _gaps_page(self, request: Request) -> Response:
        journal, link = self._egress.journal, self._egress.pair.link
        entries = [entry for entry in journal if entry.open]
        return Response(as_json(bundle_of(link.name, link.id, entries), entries), media_type="application/json")

    def ready(self) -> list[str]:
        """Why no data flows."""
        if self._egress.stopping:
            return ["it was asked to stop"]
        state = self._egress.core.state
        reasons = [] if state is ReceiverState.FOLLOWING else [f"the link is {state.value}"]
        stalled_s = self._egress.sink_stalled_s
        if stalled_s > SINK_STALLED_S:
            waiting = self._egress.queue.unaccepted
            reasons.append(f"the sink has accepted nothing for {stalled_s:.0f} s, and {waiting} messages wait for it")
        return reasons

    def status(self) -> dict[str, Any]:
        """Everything at a glance."""
        egress, core, counts = self._egress, self._egress.core, self._egress.core.counters
        said = core.announcement
        return {
            "role": self.role,
            "link": self.link,
            "link_id": egress.pair.link.id,
            "version": __version__,
            "uptime_s": round(trio.current_time() - egress.started_at_s, 3),
            "state": core.state.value,
            "epoch": core.epoch,
            "ingress": self._ingress_phase,
            "silent_s": round(core.silent_s(trio.current_time()), 3),
            "alarms": {**egress.events.alarms, **self._hangs},
            "security": security_status(egress.pair, egress.key_watch, heard_key=core.key_id),
            "listens_on": str(egress.socket.address),
            "heard_from": core.heard_from or None,
            "receive_offload": egress.socket.gro,
            "receive_buffer_bytes": egress.socket.buffer_bytes,
            "fec_backend": core.codec.name,
            "received": {
                "datagrams": counts.datagrams,
                "bytes": counts.bytes,
                "messages": counts.messages,
                "records": counts.records,
                "messages_rebuilt": counts.messages_rebuilt,
                "symbols_rebuilt": counts.symbols_rebuilt,
                "messages_late": counts.messages_late,
                "records_late": counts.records_late,
                "repeats_not_needed": core.repeats_not_needed,
            },
            "bodies": bodies(counts.plain_body_bytes, counts.body_bytes),
            "announced": None
            if said is None
            else {"messages": said.messages_sent, "records": said.records_sent, "filtered": said.records_filtered},
            "missed": {
                "datagrams": core.datagrams_missed,
                "messages": _by_name(counts.messages_lost),
                "records": counts.records_lost,
                "kernel_drops": egress.socket.kernel_drops,
                "refused_messages": dict(egress.events.refused),
                "refused_records": egress.events.refused_records,
                "sink_losses": dict(egress.events.sink_losses),
            },
            "journal": {
                "entries": len(egress.journal),
                "open_entries": len(egress.journal.open_entries),
                "positions_missing": egress.journal.positions_missing,
                "oldest_open_s": round(self._oldest_gap_s(), 3),
                "records_repaired": egress.events.repaired,
                "messages_late": egress.events.late_messages,
                "records_late": egress.events.late_records,
                "late_unusable": egress.events.late_unusable,
                "messages_mendable": core.messages_mendable,
                "messages_forgotten": core.lost_forgotten,
            },
            "dropped": _by_name(counts.dropped),
            "duplicate_records": egress.events.duplicates,
            "held": {
                "incomplete_messages": core.held_messages,
                "incomplete_bytes": core.held_bytes,
                "ahead_messages": core.ahead_messages,
                "late_messages": core.late_messages,
                "late_bytes": core.late_bytes,
                "sink_messages": len(egress.queue),
                "sink_bytes": egress.queue.bytes,
                "unaccepted_messages": egress.queue.unaccepted,
                "oldest_s": round(egress.queue.oldest_age_s, 3),
                "sink_stalled_s": round(egress.sink_stalled_s, 3),
            },
            "spool": self._spool(),
            "accepted_messages": egress.queue.accepted,
            "sink": {"type": egress.sink_type, "events": dict(egress.context.counters), **egress.context.status},
            **losses_status(egress_losses(egress)),
            "recent_events": list(egress.events.recent),
        }

    def _spool(self) -> dict[str, Any] | None:
        queue = self._egress.queue
        if queue.spool is None:
            return None
        return {
            "directory": str(queue.spool.path),
            "messages": queue.spooled,
            "bytes": queue.spool.disk_bytes,
            "max_bytes": queue.spool.max_bytes,
            "trouble": queue.trouble or None,
        }

    def _oldest_gap_s(self) -> float:
        """Age of the oldest entry of the journal that is open, in seconds; 0 if none is."""
        oldest = next((entry.at_ms for entry in self._egress.journal if entry.open), None)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)

    def metrics(self) -> Iterable[Metric]:
        """Counters of the link and of the sink."""
        egress, core, counts = self._egress, self._egress.core, self._egress.core.counters
        events = egress.events
        yield gauge("gapconn_session_epoch", "Epoch of the session that is followed; 0 if none.", core.epoch)
        yield gauge(
            "gapconn_link_up",
            "1 while a session is followed and heard.",
            core.state is ReceiverState.FOLLOWING,
        )
        yield gauge("gapconn_link_interrupted", "1 while the alarm stands.", "link_interrupted" in events.alarms)
        yield gauge("gapconn_egress_hangs", "1 while the sink or the receiver stands still.", bool(self._hangs))
        yield gauge(
            "gapconn_ingress_paused",
            "1 while the ingress says that its source is paused.",
            self._ingress_phase == "paused",
        )
        yield gauge("gapconn_link_conflict", "1 while two ingresses are heard on this link.", core.conflict)
        yield gauge(
            "gapconn_link_unverified",
            "1 while the link is not heard, and datagrams of it are that cannot be verified.",
            core.unverified,
        )
        yield from security_metrics(
            "The key that sealed what was heard last; 0 if not sealed.", core.key_id, egress.key_watch
        )
        yield gauge(
            "gapconn_link_silent_seconds",
            "Time since the followed session was heard.",
            core.silent_s(trio.current_time()),
        )
        yield counter("gapconn_datagrams_received_total", "Datagrams received, whatever they were.", counts.datagrams)
        yield counter("gapconn_received_bytes_total", "UDP payload received, in bytes.", counts.bytes)
        yield counters(
            "gapconn_datagrams_dropped_total",
            "Datagrams dropped, by reason (spec/registry.toml).",
            "reason",
            {reason.name.lower(): counts.dropped[reason] for reason in DropReason},
        )
        yield gauge(
            "gapconn_datagrams_missed",
            "Datagrams of the followed sessions that were sent and have not arrived.",
            core.datagrams_missed,
        )
        yield counter(
            "gapconn_kernel_drops_total",
            "Packets that the kernel dropped with the receive buffer full; joined by GRO, many datagrams are one.",
            egress.socket.kernel_drops,
        )
        yield counter("gapconn_messages_received_total", "Messages that arrived whole.", counts.messages)
        yield counter(
            "gapconn_messages_rebuilt_total",
            "Messages that are whole because lost symbols of them were rebuilt.",
            counts.messages_rebuilt,
        )
        yield counter(
            "gapconn_symbols_rebuilt_total",
            "Symbols that were lost, damaged or late and were rebuilt from repair symbols.",
            counts.symbols_rebuilt,
        )
        yield counter("gapconn_records_received_total", "Records in messages that arrived whole.", counts.records)
        yield counter(
            "gapconn_body_bytes_total", "Bodies of messages as they cross, compressed or not.", counts.body_bytes
        )
        yield counter("gapconn_plain_body_bytes_total", "The same when inflated.", counts.plain_body_bytes)
        yield counters(
            "gapconn_messages_lost_total",
            "Messages that will not be delivered, by cause (spec/registry.toml).",
            "cause",
            {
                cause.name.lower(): counts.messages_lost[cause] + events.refused[cause.name.lower()]
                for cause in LossCause
            },
        )
        yield counter(
            "gapconn_records_lost_total",
            "Records that will not be delivered.",
            counts.records_lost + events.refused_records,
        )
        yield counter(
            "gapconn_records_duplicate_total",
            "Records dropped because they had been delivered before.",
            events.duplicates,
        )
        yield gauge(
            "gapconn_gap_entries_open", "Losses in the journal that are not closed.", len(egress.journal.open_entries)
        )
        yield gauge(
            "gapconn_gap_positions_missing",
            "Positions that the journal has open; not every one need have held a record.",
            egress.journal.positions_missing,
        )
        yield gauge("gapconn_gap_oldest_seconds", "Age of the oldest open loss; 0 if none is.", self._oldest_gap_s())
        yield counter(
            "gapconn_records_repaired_total",
            "Records that were missing, were sent again, and went to the sink.",
            events.repaired,
        )
        yield from self._late_metrics()
        yield counters("gapconn_sink_losses_total", "Losses that the sink reported.", "reason", events.sink_losses)
        yield counter("gapconn_sessions_followed_total", "Ingress sessions that got the link.", counts.sessions)
        yield counter("gapconn_link_interruptions_total", "Alarms: link interrupted.", counts.interruptions)
        yield counter("gapconn_link_conflicts_total", "Alarms: two ingresses on this link.", counts.conflicts)
        yield counter("gapconn_foreign_links_total", "Alarms: datagrams of another link.", counts.foreign_links)
        yield counter("gapconn_unverified_total", "Alarms: datagrams that cannot be verified.", counts.unverified)
        yield gauge(
            "gapconn_reassembly_held_bytes",
            "Memory of messages that are incomplete or wait for an earlier one.",
            core.held_bytes,
        )
        yield gauge("gapconn_sink_held_bytes", "Messages that wait for the sink, in bytes.", egress.queue.bytes)
        yield counter("gapconn_messages_accepted_total", "Messages that the sink has for good.", egress.queue.accepted)
        yield gauge(
            "gapconn_sink_unaccepted_messages",
            "Messages that arrived and that the sink does not have for good yet.",
            egress.queue.unaccepted,
        )
        yield gauge(
            "gapconn_sink_stalled_seconds",
            "How long the sink has accepted nothing although messages wait for it.",
            egress.sink_stalled_s,
        )
        yield gauge(
            "gapconn_sink_oldest_seconds",
            "How long ago the oldest message arrived that the sink has not accepted; 0 if there is none.",
            egress.queue.oldest_age_s,
        )
        yield from losses_metrics(egress_losses(egress, journal=False))
        yield from self._disk_metrics()
        yield counters(
            "gapconn_sink_events_total",
            "What the sink counted, by event.",
            "event",
            egress.context.counters,
        )

    def _disk_metrics(self) -> Iterable[Metric]:
        """The spool and the state."""
        egress = self._egress
        spool = egress.queue.spool
        yield gauge("gapconn_spool_bytes", "What the spool takes on disk.", egress.queue.disk_bytes)
        yield gauge("gapconn_spool_max_bytes", "What it may take; 0 without a spool.", spool.max_bytes if spool else 0)
        yield gauge("gapconn_spool_messages", "Messages on disk that the sink has not accepted.", egress.queue.spooled)
        yield gauge(
            "gapconn_spool_stuck",
            "1 while the spool takes nothing: it is full, or its disk.",
            bool(egress.queue.trouble),
        )
        yield gauge(
            "gapconn_state_stuck",
            "1 while the state directory takes nothing: what is delivered and missing is only in memory.",
            any(alarm in egress.events.alarms for alarm in STATE_ALARMS),
        )

    def _late_metrics(self) -> Iterable[Metric]:
        """What became of messages that are repeated."""
        yield counter(
            "gapconn_messages_late_total",
            "Messages that were lost, came late, and had something for the sink.",
            self._egress.events.late_messages,
        )
        yield counter(
            "gapconn_records_late_total",
            "Records that were lost, came late in a repeat, and went to the sink.",
            self._egress.events.late_records,
        )
        yield counter(
            "gapconn_late_unusable_total",
            "Late messages of which the sink could not use all: the streams in them were broken off before.",
            self._egress.events.late_unusable,
        )
        yield counter(
            "gapconn_repeats_not_needed_total",
            "Source symbols that came and were not needed: of repeats, or behind repair symbols.",
            self._egress.core.repeats_not_needed,
        )
        yield gauge(
            "gapconn_messages_mendable",
            "Lost messages of the session that are taken when they are repeated.",
            self._egress.core.messages_mendable,
        )
        yield counter(
            "gapconn_lost_messages_forgotten_total",
            "Lost messages that were too many to be taken when they are repeated.",
            self._egress.core.lost_forgotten,
        )


def _by_name(counts: dict[DropReason, int] | dict[LossCause, int]) -> dict[str, int]:
    return {key.name.lower(): count for key, count in sorted(counts.items()) if count}
