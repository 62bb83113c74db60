"""What an ingress shows of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client.metrics_core import Metric

from gapconn import __version__
from gapconn.admin.losses import ingress_losses, losses_metrics, losses_status
from gapconn.admin.metrics import counter, counters, gauge
from gapconn.admin.security import security_metrics, security_status
from gapconn.admin.view import Page, bodies
from gapconn.protocol.states import SenderState
from gapconn.units import format_percent

if TYPE_CHECKING:
    from gapconn.ingress import Ingress


class IngressView:
    """An `AdminView` of an ingress."""

    role = "ingress"

    def __init__(self, ingress: Ingress, pages: Sequence[Page] = ()) -> None:
        self._ingress = ingress
        self._pages = pages
        self.link = ingress.pair.link.name

    def live(self) -> list[str]:
        """An ingress that answers is alive."""
        return []

    def health(self) -> list[str]:
        """An ingress that runs is healthy: a blind sender cannot know more."""
        return []

    def health_facts(self) -> dict[str, Any]:
        """For a monitor: who holds it."""
        return {
            "role": self.role,
            "link": self.link,
            "uptime_s": round(trio.current_time() - self._ingress.started_at_s, 3),
            "at_rest": self._ingress.at_rest.value,
            "holds": self._ingress.pauses.facts(),
        }

    def pages(self) -> Sequence[Page]:
        """Those by which it is controlled."""
        return self._pages

    def ready(self) -> list[str]:
        """Why no data flows."""
        state = self._ingress.core.state
        if state is SenderState.ACTIVE:
            if self._ingress.stopping:
                return ["it was asked to stop"]
            return [f"it is paused by {hold.owner}: {hold.reason}" for hold in self._ingress.pauses.holds]
        return [f"the session is {state.value}"]

    def status(self) -> dict[str, Any]:
        """Everything at a glance."""
        ingress, counts, link = self._ingress, self._ingress.core.counters, self._ingress.pair.link
        return {
            "role": self.role,
            "link": link.name,
            "link_id": link.id,
            "version": __version__,
            "uptime_s": round(trio.current_time() - ingress.started_at_s, 3),
            "state": ingress.core.state.value,
            "epoch": ingress.core.settings.epoch,
            "paused": {"at_rest": ingress.at_rest.value, "holds": ingress.pauses.facts()},
            "security": security_status(ingress.pair, ingress.key_watch, key_in_use=ingress.core.key_id),
            "sends_to": str(link.address),
            "rate_bps": link.rate_bps,
            "segmentation_offload": ingress.socket.gso,
            "repair": format_percent(link.fec.repair),
            "fec_backend": ingress.core.codec.name,
            "sent": {
                "datagrams": counts.datagrams,
                "bytes": counts.bytes,
                "messages": counts.messages,
                "records": counts.records,
                "heartbeats": counts.heartbeats,
                "repair_symbols": counts.repair_symbols,
            },
            "bodies": bodies(counts.plain_body_bytes, counts.body_bytes),
            "resent": {
                "request": ingress.resends.current if ingress.resends else None,
                "records": ingress.resends.records if ingress.resends else 0,
                "positions_gone": ingress.resends.positions_gone if ingress.resends else 0,
                "messages": ingress.resends.messages if ingress.resends else 0,
            },
            "repeats": self._repeats(),
            "send_stalls": ingress.socket.stalls,
            "source": {
                "type": ingress.source_type,
                "events": dict(ingress.context.counters),
                **ingress.context.status,
            },
            **losses_status(ingress_losses(ingress)),
        }

    def _repeats(self) -> dict[str, Any] | None:
        ingress, repeats = self._ingress, self._ingress.repeats
        if repeats is None:
            return None
        return {
            "messages": ingress.core.counters.messages_repeated,
            "datagrams": ingress.core.counters.datagrams_repeated,
            "late_s": repeats.late_s,
            "kept": repeats.counters.kept,
            "not_kept": repeats.counters.not_kept,
            "dropped": repeats.counters.dropped,
            "in_buffer": repeats.buffer.messages,
            "disk_bytes": repeats.buffer.disk_bytes,
            "max_bytes": repeats.buffer.max_bytes,
            "alarms": list(repeats.alarms),
        }

    def metrics(self) -> Iterable[Metric]:
        """Counters of the link and of the source, and whether it is paused."""
        yield gauge("gapconn_source_paused", "1 while somebody holds the source.", bool(self._ingress.pauses.holds))
        yield from self._link_metrics()

    def _link_metrics(self) -> Iterable[Metric]:
        """Counters of the session and of the source."""
        ingress, counts = self._ingress, self._ingress.core.counters
        yield gauge(
            "gapconn_session_epoch",
            "Epoch of the session that is sent.",
            ingress.core.settings.epoch,
        )
        yield from security_metrics(
            "The key with which datagrams are sealed; 0 if they are not.", ingress.core.key_id, ingress.key_watch
        )
        yield counter("gapconn_datagrams_sent_total", "Datagrams of all types built for the gap.", counts.datagrams)
        yield counter("gapconn_sent_bytes_total", "UDP payload built for the gap, in bytes.", counts.bytes)
        yield counter("gapconn_messages_sent_total", "Messages sent.", counts.messages)
        yield counter("gapconn_records_sent_total", "Records sent.", counts.records)
        yield counter(
            "gapconn_repair_symbols_sent_total",
            "Datagrams built for the gap that carry a repair symbol.",
            counts.repair_symbols,
        )
        yield counter(
            "gapconn_body_bytes_total", "Bodies of messages as they cross, compressed or not.", counts.body_bytes
        )
        yield counter("gapconn_plain_body_bytes_total", "The same before compression.", counts.plain_body_bytes)
        yield counter("gapconn_heartbeats_sent_total", "HeartBeats sent.", counts.heartbeats)
        yield counter(
            "gapconn_send_stalls_total",
            "Times that the kernel had no buffer or no route, and a burst was tried again.",
            ingress.socket.stalls,
        )
        yield from losses_metrics(ingress_losses(ingress))
        yield counter(
            "gapconn_records_resent_total",
            "Records sent again because an operator asked for them.",
            ingress.resends.records if ingress.resends else 0,
        )
        yield counter(
            "gapconn_resend_positions_gone_total",
            "Positions of which the egress was told that the source has them no more.",
            ingress.resends.positions_gone if ingress.resends else 0,
        )
        yield from self._repeat_metrics()
        yield counters(
            "gapconn_source_events_total",
            "What the source counted, by event.",
            "event",
            ingress.context.counters,
        )

    def _repeat_metrics(self) -> Iterable[Metric]:
        repeats, counts = self._ingress.repeats, self._ingress.core.counters
        if repeats is None:
            return
        yield counter("gapconn_messages_repeated_total", "Messages sent again, each time.", counts.messages_repeated)
        yield counter(
            "gapconn_datagrams_repeated_total", "Datagrams of messages sent again.", counts.datagrams_repeated
        )
        yield gauge("gapconn_repeats_late_seconds", "By how much the repeats are late.", repeats.late_s)
        yield counter(
            "gapconn_repeats_dropped_total",
            "Messages dropped from the repeat buffer before they were repeated as often as they should be.",
            repeats.counters.dropped,
        )
        yield counter(
            "gapconn_messages_not_repeatable_total",
            "Messages that the repeat buffer did not take.",
            repeats.counters.not_kept,
        )
        yield gauge(
            "gapconn_repeats_alarm", "1 while repeats are dropped, or not everything is kept.", bool(repeats.alarms)
        )
        yield gauge("gapconn_repeat_buffer_bytes", "What the repeat buffer takes on disk.", repeats.buffer.disk_bytes)
        yield gauge("gapconn_repeat_buffer_max_bytes", "What it may take.", repeats.buffer.max_bytes)
