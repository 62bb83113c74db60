"""What happened to the data, in words: what was lost where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, TypeAlias

import attrs

from gapconn.link.host import interface_packets
from gapconn.units import format_bytes
from gapconn.why.counts import EgressCounts, Host, IngressCounts, Other
from gapconn.why.ledger import Ledger, ledger

PAGE: Final = "docs/losses.md"

Level: TypeAlias = Literal["alarm", "loss", "note"]
"""Something is wrong now; something is missing; or what one should know beside it."""


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that happened."""

    place: str
    """Where; also the heading of `PAGE` that explains it."""
    level: Level
    what: str
    do: str
    count: int = 0
    unit: str = ""
    """What was counted; empty where nothing was."""

    @property
    def see(self) -> str:
        """Where the documentation goes on."""
        return f"{PAGE}#{self.place}"


_LEVELS: Final[tuple[Level, ...]] = ("alarm", "loss", "note")

_UNREADABLE: Final = (
    "bad_check", "bad_magic", "too_short", "unsupported_version", "wrong_security_mode", "unknown_key", "unknown_type",
    "malformed",
)  # fmt: skip

_CAUSES: Final[Mapping[str, tuple[str, str]]] = {
    "gap": (
        "more of their datagrams were missing than repair symbols could replace",
        "see to the missing datagrams first; raise link.fec.repair; gapconn gaps list FILE has what is known of them",
    ),
    "damaged": (
        "whole, but their check does not fit or they cannot be inflated",
        "if link.message_bytes_max is smaller here than at the ingress, make it the same; otherwise report it",
    ),
    "overflow": (
        "given up, because so much waited behind a missing one that reassembly memory ran out",
        "raise link.reassembly_bytes_max, or shorten link.reorder_timeout; see to the missing datagrams first",
    ),
    "session_ended": (
        "incomplete when the next session of the ingress took the link",
        "normal after an ingress was killed: it sends again what it had not acknowledged",
    ),
    "before_join": (
        "sent before this egress first heard the session",
        "normal at a first start in the middle of a session; otherwise keep link.state_directory over restarts",
    ),
    "while_away": (
        "sent while the egress was not running, or delivered just before it was killed",
        "compare at the target; gapconn gaps list FILE has what is known of them",
    ),
    "refused": (
        "whole, and refused: the sink was too slow or away, and neither memory nor spool had room",
        "bring the target back; a larger spool.max_bytes gives it more time; then gapconn gaps list FILE",
    ),
}

_SOURCE_LOSSES: Final[Mapping[tuple[str, str], tuple[str, str, str]]] = {
    ("udp", "kernel_dropped"): (
        "datagrams",
        "were dropped by the kernel of the ingress's host before the source read them: its receive buffer was full",
        "raise source.receive_buffer_bytes and net.core.rmem_max, or link.rate if the link is the narrow part",
    ),
    ("udp", "too_large"): ("datagrams", "do not fit into a message", "raise link.message_bytes_max at both ends"),
    ("udp", "lost_at_stop"): ("datagrams", "were in hand when the ingress stopped", "a longer link.shutdown_grace"),
    ("kafka", "records_expired"): (
        "offsets",
        "were deleted by retention before the ingress had read them",
        "a longer retention.ms of the topic, or a faster link",
    ),
    ("kafka", "record_unfit"): (
        "records",
        "cannot cross and were left out",
        "raise link.message_bytes_max at both ends, or correct their headers",
    ),
    ("stdin", "lines_too_long"): ("lines", "were too long and left out", "raise source.max_line_bytes"),
    ("stdin", "unsent_when_stopped"): (
        "pieces of input",
        "were read, and not sent before the ingress stopped",
        "a longer link.shutdown_grace",
    ),
    ("tcp", "connections_refused"): ("connections", "were refused: too many at a time", "raise source.max_connections"),
    ("tcp", "aborted_at_stop"): ("connections", "were broken off by a stop", "nothing: the clients connect again"),
}
"""What a source counts as lost before it was sent, by its type and event."""

_WRONG_SINK: Final = "the source does not go with this sink: gapconn check"
_NO_TOMBSTONES: Final = "nothing, if the target needs no deletions; otherwise a sink that carries them: kafka"

_SINK_LOSSES: Final[Mapping[tuple[str, str], tuple[str, str, str]]] = {
    ("udp", "refused"): (
        "datagrams",
        "at the least were refused by the target, where nobody listens; they are not in the gap journal",
        "start the receiver at sink.send_to. Kafka can be read again: gapconn resend FILE --topic TOPIC --from TIME"
        " --to TIME --again at the source; anything else has to be sent once more by whoever sent it",
    ),
    ("udp", "null_values"): (
        "records",
        "have no value (tombstones), which a datagram cannot say: they were left out",
        _NO_TOMBSTONES,
    ),
    ("udp", "chunks_refused"): ("pieces", "of byte streams were thrown away: a udp sink takes records", _WRONG_SINK),
    ("tcp", "records_refused"): ("records", "were thrown away: a tcp sink takes byte streams", _WRONG_SINK),
    ("tcp", "chunks_malformed"): (
        "pieces",
        "of byte streams were thrown away: no ingress of this version sends such",
        "the same version at both ends? Otherwise report it",
    ),
    ("tcp", "aborted_before_connect"): (
        "connections",
        "were given up by their clients before the target could be reached, which knows nothing of them",
        "is the target there, and does it listen at sink.connect?",
    ),
    ("files", "records_refused"): ("records", "were thrown away: a files sink takes files", _WRONG_SINK),
    ("stdout", "null_values"): (
        "records",
        "have no value (tombstones), which a line cannot say: they were left out",
        _NO_TOMBSTONES,
    ),
}
"""What did not reach the target and is in no gap journal, by the type and event of the sink."""


def findings(
    egress: EgressCounts | None, ingress: IngressCounts | None, *, cannot_resend: str | None = None
) -> list[Finding]:
    """What the two ends, or the one that answers, have to tell: alarms first, then losses, then notes.

    Args:
        egress: What it counted.
        ingress: What it counted.
        cannot_resend: As `IngressCounts` has it, where no ingress says it.
    """
    if ingress is not None and ingress.cannot_resend is not None:
        cannot_resend = ingress.cannot_resend
    found: list[Finding] = []
    if egress is not None:
        book = ledger(egress, ingress)
        found += _alarms(egress, ingress)
        found += _strangers(egress)
        found += _missing_here(egress, book)
        found += _missing_elsewhere(egress, ingress, book)
        found += _messages(egress)
        found += _behind(egress)
        found += _journal(egress, cannot_resend)
    if ingress is not None:
        found += _ingress(ingress)
    # Missing datagrams are why messages are missing: they come first.
    return sorted(found, key=lambda each: (_LEVELS.index(each.level), each.unit != "datagrams", -each.count))


def _counted(mapping: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in mapping.items() if count)


def _told(
    losses: Mapping[tuple[str, str], tuple[str, str, str]], kind: str, events: Mapping[str, int], *, place: str
) -> Iterator[Finding]:
    """What a source or sink of this type has counted as lost."""
    for event, count in events.items():
        if count and (kind, event) in losses:
            unit, what, do = losses[kind, event]
            yield Finding(place=place, level="loss", count=count, unit=unit, what=f"{count:,} {unit} {what}", do=do)


# -- now ---------------------------------------------------------------------------------------------------------


def _alarms(egress: EgressCounts, ingress: IngressCounts | None) -> Iterator[Finding]:
    if ingress is not None and ingress.link_id != egress.link_id:
        yield Finding(
            place="pairing",
            level="alarm",
            what=f"these are the ends of two links: the egress is of link id {egress.link_id}, the ingress of"
            f" {ingress.link_id}",
            do="give both the same file; see gapconn check",
        )
        return
    if egress.state in ("waiting", "interrupted"):
        yield _silence(egress, ingress)
    elif ingress is not None and ingress.state == "active" and egress.epoch not in (0, ingress.epoch):
        yield Finding(
            place="conflict",
            level="alarm",
            what=f"the egress follows session {egress.epoch}, but the ingress that was asked sends {ingress.epoch}:"
            " there is another ingress, or this one has just been restarted",
            do="ask again in a few seconds; if it stays, stop one of the two ingresses",
        )
    for name, text in egress.alarms.items():
        if name == "unverified":
            yield Finding(place="unreadable", level="alarm", what=text, do="see the key files of both ends")
        elif name.startswith("spool"):
            yield Finding(
                place="sink", level="alarm", what=text, do="bring the target back, or make room for the spool"
            )
        elif name.startswith("state"):
            yield Finding(
                place="journal", level="alarm", what=text, do="make room in link.state_directory, and let it be written"
            )


def _silence(egress: EgressCounts, ingress: IngressCounts | None) -> Finding:
    heard = "nothing was ever heard of the ingress" if not egress.epoch else "nothing is heard of the ingress"
    if ingress is None:
        do = "is the ingress running? Then look at cable, gap device, route and neighbour entry at the source"
    elif ingress.state in ("active", "announcing"):
        heard += f", although it sends ({ingress.sent:,} datagrams to {ingress.sends_to}; the egress listens on"
        heard += f" {egress.listens_on})"
        do = (
            "if a second ingress or link is told here, stop it; otherwise route and neighbour entry at the source,"
            " cable, gap device, firewall at the destination, MTU"
        )
    else:
        do = f"the ingress is {ingress.state}: start it"
    level: Level = "alarm" if egress.silent_s >= egress.interruption_timeout_s else "note"
    return Finding(place="silence", level=level, what=f"{heard} for {egress.silent_s:.1f} s", do=do)


def _strangers(egress: EgressCounts) -> Iterator[Finding]:
    for other in egress.others:
        recent = other.last_heard_s <= egress.interruption_timeout_s
        level: Level = "alarm" if recent else "note"
        if other.reason == "foreign_link":
            yield Finding(
                place="foreign-link",
                level=level,
                count=other.datagrams,
                unit="datagrams",
                what=f"an ingress of another link (id {other.identity}) {_sends(other, recent)} to this egress;"
                " they are dropped, and nothing of this link is lost by that",
                do="correct link.address of that ingress",
            )
        elif other.reason in ("conflict", "stale_session") and egress.conflicts:
            followed = f"session {egress.epoch}" + (f" from {egress.heard_from}" if egress.heard_from else "")
            yield Finding(
                place="conflict",
                level="alarm" if "conflict" in egress.alarms and recent else "note",
                count=other.datagrams,
                unit="datagrams",
                what=f"a second ingress (session {other.identity}) {_sends(other, recent)} on this link; they are"
                f" dropped, and {followed} keeps the link",
                do="stop the one that is not wanted; a wanted replacement gets the link when the other is silent",
            )


def _sends(other: Other, recent: bool) -> str:
    where = f" from {other.came_from}" if other.came_from else ""
    heard = f"last heard {other.last_heard_s:.1f} s ago"
    return f"{'sends' if recent else 'sent'}{where} ({other.datagrams:,} datagrams, {heard})"


# -- missing datagrams -------------------------------------------------------------------------------------------


def _missing_here(egress: EgressCounts, book: Ledger) -> Iterator[Finding]:
    unreadable = {reason: count for reason in _UNREADABLE if (count := egress.dropped.get(reason, 0))}
    senders = sorted({each.came_from for each in egress.others if each.reason in unreadable and each.came_from})
    where = f", from {', '.join(senders)}" if senders else ""
    if book.unreadable:
        yield Finding(
            place="unreadable",
            level="loss",
            count=book.unreadable,
            unit="datagrams",
            what=f"{book.unreadable:,} datagrams of the link arrived damaged ({_counted(unreadable)}{where})",
            do="something on the way changes them: gap device, cable, network card; raise link.fec.repair meanwhile",
        )
    spare = sum(unreadable.values()) - book.unreadable
    if spare > 0:
        yield Finding(
            place="unreadable",
            level="note",
            count=spare,
            unit="datagrams",
            what=f"{spare:,} datagrams that cannot be read came beside the link's own, and nothing is missing for them"
            f" ({_counted(unreadable)}{where})",
            do="who else sends to this port? A firewall can keep them off",
        )
    yield from _kernel(egress, book)
    if book.egress_interface:
        yield _interface(egress.host, book.egress_interface, "egress", "of any traffic, while datagrams went missing")


def _kernel(egress: EgressCounts, book: Ledger) -> Iterator[Finding]:
    packets = egress.packets_dropped
    damaged = egress.host.udp.get("InCsumErrors", 0)
    if damaged and not egress.host.udp.get("RcvbufErrors", 0):
        why = "because their UDP checksum was wrong"
        do = "something on the way changes them: gap device, cable, network card (ethtool -K IFACE rx off tells which)"
    else:
        why = f"because the receive buffer of {format_bytes(egress.buffer_bytes)} was full"
        if egress.buffer_bytes < egress.buffer_wanted_bytes:
            do = (
                f"sysctl -w net.core.rmem_max={egress.buffer_wanted_bytes}, or give the egress CAP_NET_ADMIN; then"
                " restart it"
            )
        else:
            do = (
                "the egress was not scheduled, or is too slow for this rate: give it a processor, lower link.rate"
                " (gapconn bench finds it), or raise link.receive_buffer_bytes and net.core.rmem_max"
            )
    if book.egress_kernel:
        yield Finding(
            place="egress-kernel",
            level="loss",
            count=book.egress_kernel,
            unit="datagrams",
            what=f"the kernel of the egress's host dropped {book.egress_kernel:,} datagrams (in {packets:,} packets)"
            f" {why}",
            do=do,
        )
    elif packets:
        yield Finding(
            place="egress-kernel",
            level="note",
            count=packets,
            unit="packets",
            what=f"the kernel of the egress's host dropped {packets:,} packets {why}; nothing of the link is missing"
            " for that so far",
            do=do,
        )


def _interface(host: Host, count: int, end: str, which: str) -> Finding:
    words = [
        f"{name} dropped {interface_packets(counters):,} ({_counted(counters)})"
        for name, counters in host.interfaces.items()
        if interface_packets(counters)
    ]
    total: dict[str, int] = {}
    for counters in host.interfaces.values():
        for key, value in counters.items():
            total[key] = total.get(key, 0) + value
    if total.get("rx_crc_errors", 0) or total.get("rx_frame_errors", 0):
        do = "frames arrive damaged: cable, transceiver, switch port; ethtool -S IFACE"
    elif any(total.get(key, 0) for key in ("rx_missed_errors", "rx_fifo_errors", "rx_over_errors")):
        do = "its ring is too small or its processor too slow: ethtool -G IFACE rx 4096, and spread its interrupts"
    elif host.backlog_dropped:
        do = "the queue behind it was full: sysctl -w net.core.netdev_max_backlog=10000"
    else:
        do = "ethtool -S IFACE tells which"
    return Finding(
        place=f"{end}-interface",
        level="loss",
        count=count,
        unit="datagrams",
        what=f"at most {count:,} datagrams were lost by an interface of the {end}'s host: {', '.join(words)}, {which}",
        do=do,
    )


def _missing_elsewhere(egress: EgressCounts, ingress: IngressCounts | None, book: Ledger) -> Iterator[Finding]:
    if ingress is not None and book.ingress_kernel:
        yield Finding(
            place="ingress-kernel",
            level="loss",
            count=book.ingress_kernel,
            unit="datagrams",
            what=f"at most {book.ingress_kernel:,} datagrams were thrown away by the kernel of the ingress's host, on"
            " their way into a full interface queue (SndbufErrors, of all programs)",
            do="lower link.rate below what the interface carries, or lengthen its queue: ip link set IFACE txqueuelen",
        )
    if ingress is not None and book.ingress_interface:
        yield _interface(ingress.host, book.ingress_interface, "ingress", "of any traffic since the ingress started")
    if book.link:
        blind = "" if ingress is not None else " or on the ingress's host, which was not asked"
        yield Finding(
            place="link",
            level="loss",
            count=book.link,
            unit="datagrams",
            what=f"{book.link:,} datagrams were lost on the link: they were sent, and never came to the egress's host"
            f" (in the gap{blind})",
            do="lower link.rate (gapconn bench finds what the gap carries), raise link.fec.repair; gap device, cable",
        )
    if book.unknown:
        yield Finding(
            place="unknown",
            level="loss",
            count=book.unknown,
            unit="datagrams",
            what=f"of {book.unknown:,} datagrams it cannot be said where they were lost: the kernel of the egress's"
            f" host dropped {egress.packets_dropped:,} packets, and does not say how many datagrams were in them",
            do="see to the receive buffer first (net.core.rmem_max), then look what is still lost",
        )
    if book.missed and egress.rebuilt:
        yield Finding(
            place="repair-symbols",
            level="note",
            count=egress.rebuilt,
            unit="datagrams",
            what=f"{egress.rebuilt:,} datagrams were rebuilt from repair symbols: their data is not lost",
            do="nothing, as long as no messages are lost",
        )


# -- messages ----------------------------------------------------------------------------------------------------


def _messages(egress: EgressCounts) -> Iterator[Finding]:
    lost = {
        cause: egress.messages_lost.get(cause, 0) + egress.messages_refused.get(cause, 0)
        for cause in {**egress.messages_lost, **egress.messages_refused}
    }
    for cause, count in lost.items():
        what, do = _CAUSES.get(cause, ("lost", "see the log"))
        if cause == "refused" and egress.spool_trouble:
            what += f" ({egress.spool_trouble})"
        journaled = egress.journal.get(cause)
        came = journaled is not None and 0 < journaled.entries == journaled.repaired_entries
        if count:
            yield Finding(
                place={"refused": "sink", "overflow": "memory"}.get(cause, "messages"),
                level="note" if came else "loss",
                count=count,
                unit="messages",
                what=f"{count:,} messages were lost, cause {cause}, and came again"
                if came
                else f"{count:,} messages are lost, cause {cause}: {what}",
                do="nothing: gapconn gaps list FILE --all has their entries" if came else do,
            )
    too_long = egress.dropped.get("over_limit", 0)
    if too_long:
        yield Finding(
            place="memory",
            level="loss",
            count=too_long,
            unit="datagrams",
            what=f"{too_long:,} datagrams are of messages longer than link.message_bytes_max of this egress",
            do="make link.message_bytes_max the same at both ends",
        )


def _behind(egress: EgressCounts) -> Iterator[Finding]:
    """Behind the reassembler."""
    for reason, count in egress.sink_losses.items():
        yield Finding(
            place="sink",
            level="loss",
            count=count,
            unit="losses",
            what=f"the {egress.sink_type} sink could not deliver, {count:,} times: {reason}",
            do="the log has sink_lost with the places, docs/operations.md the meaning",
        )
    yield from _told(_SINK_LOSSES, egress.sink_type, egress.sink_events, place="sink")
    if egress.sink_stalled_s > 10:
        yield Finding(
            place="sink",
            level="alarm",
            what=f"the {egress.sink_type} sink has accepted nothing for {egress.sink_stalled_s:.0f} s, and messages"
            " wait",
            do="is the target there, and does it take data?",
        )
    if egress.records_filtered:
        yield Finding(
            place="source",
            level="note",
            count=egress.records_filtered,
            unit="records",
            what=f"{egress.records_filtered:,} records were left out by the ingress on purpose",
            do="nothing, if that is what its filters are for",
        )


def _journal(egress: EgressCounts, cannot_resend: str | None) -> Iterator[Finding]:
    entries = sum(total.open_entries for total in egress.journal.values())
    if not entries:
        return
    missing = sum(total.positions_missing for total in egress.journal.values())
    resend = "gapconn gaps export FILE at the egress, and gapconn resend FILE --gaps LIST at the source"
    if cannot_resend is None:
        resend += ", if that can be read a second time or has a [repeat_buffer]"
    yield Finding(
        place="journal",
        level="note",
        count=entries,
        unit="entries",
        what=f"open in the gap journal: entries {entries:,}, missing positions {missing:,}",
        do=cannot_resend or resend,
    )


# -- the ingress -------------------------------------------------------------------------------------------------


def _ingress(ingress: IngressCounts) -> Iterator[Finding]:
    yield from _told(_SOURCE_LOSSES, ingress.source_type, ingress.source_events, place="source")
    stalls = sum(ingress.refusals.values())
    if stalls:
        yield Finding(
            place="ingress-kernel",
            level="note",
            count=stalls,
            unit="times",
            what=f"the kernel of the ingress's host did not take a burst, {stalls:,} times"
            f" ({_counted(ingress.refusals)}); it was sent again, and nothing is lost by that",
            do="ENOBUFS: a longer queue of the interface; others: route, interface, neighbour entry",
        )
