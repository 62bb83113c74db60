"""What the two ends have counted that tells of loss. It travels in `/status` as `losses`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs
from cattrs import Converter

from gapconn.journal import Entry

_Counts = TypeVar("_Counts")


@attrs.frozen(kw_only=True)
class Host:
    """What a host lost since an end of the link was started on it (`gapconn.link.host`); others' packets are in it."""

    udp: dict[str, int] = attrs.field(factory=dict)
    backlog_dropped: int = 0
    interfaces: dict[str, dict[str, int]] = attrs.field(factory=dict)
    coincident: int = 0
    """Packets that its interfaces lost about when datagrams of the link went missing; only an egress knows."""


@attrs.frozen(kw_only=True)
class Other:
    """Somebody whose datagrams the egress dropped."""

    reason: str
    """A drop reason of the registry."""
    identity: int = 0
    """The link id, or the epoch, where the reason has one."""
    came_from: str = ""
    datagrams: int = 0
    last_heard_s: float = 0.0
    """So many seconds ago."""


@attrs.frozen(kw_only=True)
class JournalTotal:
    """What the gap journal has of one cause."""

    entries: int = 0
    open_entries: int = 0
    repaired_entries: int = 0
    """All of them came after all; others are open, or closed although something is gone."""
    messages: int = 0
    records: int = 0
    positions_missing: int = 0


@attrs.frozen(kw_only=True)
class EgressCounts:
    """What an egress knows of loss. Counts are since its start."""

    link_id: int = 0
    epoch: int = 0
    """Of the followed session; 0 if there is none."""
    state: str = "following"
    silent_s: float = 0.0
    interruption_timeout_s: float = 3.0
    heard_from: str = ""
    """The followed ingress's address."""
    listens_on: str = ""
    alarms: dict[str, str] = attrs.field(factory=dict)
    conflicts: int = 0
    """Times that two ingresses were heard."""
    missed: int = 0
    """Datagrams that were sent and have not arrived, or could not be read."""
    missed_unreadable: int = 0
    missed_here: int = 0
    """Of the missed ones, those that the kernel of this host dropped; see `LinkReceiver.missed_here`."""
    tells_drops: bool = True
    """Whether the kernel says behind what it dropped something; if not, `missed_here` is always 0."""
    packets_dropped: int = 0
    """By the kernel at the egress's socket; a burst that it joined is one packet."""
    buffer_bytes: int = 0
    buffer_wanted_bytes: int = 0
    host: Host = attrs.field(factory=Host)
    dropped: dict[str, int] = attrs.field(factory=dict)
    """Datagrams by drop reason."""
    others: list[Other] = attrs.field(factory=list)
    rebuilt: int = 0
    """Datagrams that were missing, and were rebuilt from repair symbols."""
    messages_lost: dict[str, int] = attrs.field(factory=dict)
    """By loss cause; those that were refused are apart."""
    messages_refused: dict[str, int] = attrs.field(factory=dict)
    records_lost: int = 0
    records_refused: int = 0
    records_filtered: int = 0
    """Left out by the ingress on purpose."""
    spool_trouble: str = ""
    """Why the spool takes nothing now."""
    sink_type: str = ""
    sink_stalled_s: float = 0.0
    sink_losses: dict[str, int] = attrs.field(factory=dict)
    """What the sink reported as lost, by reason: it is in the gap journal."""
    sink_events: dict[str, int] = attrs.field(factory=dict)
    """What the sink counted."""
    journal: dict[str, JournalTotal] = attrs.field(factory=dict)
    """By cause."""


@attrs.frozen(kw_only=True)
class IngressCounts:
    """What an ingress knows of loss. Counts are since its start, which is that of its session."""

    link_id: int = 0
    epoch: int = 0
    state: str = "active"
    sends_to: str = ""
    sent: int = 0
    """Datagrams."""
    refusals: dict[str, int] = attrs.field(factory=dict)
    """Times that the kernel did not take a burst, by the name of the error; it was tried again."""
    host: Host = attrs.field(factory=Host)
    source_type: str = ""
    source_events: dict[str, int] = attrs.field(factory=dict)
    cannot_resend: str | None = None
    """Why `gapconn resend` can send nothing of this source, and what to do instead; empty if it can, None if the
    ingress does not say."""


def journal_totals(entries: Iterable[Entry]) -> dict[str, JournalTotal]:
    """What a gap journal has, by cause."""
    totals: dict[str, JournalTotal] = {}
    for entry in entries:
        before = totals.get(entry.cause, JournalTotal())
        totals[entry.cause] = JournalTotal(
            entries=before.entries + 1,
            open_entries=before.open_entries + entry.open,
            repaired_entries=before.repaired_entries + (entry.outcome == "repaired"),
            messages=before.messages + entry.messages.count,
            records=before.records + entry.records,
            positions_missing=before.positions_missing
            + (sum(ranges.count for ranges in entry.missing.values()) if entry.open else 0),
        )
    return totals


_converter = Converter()


def as_json(counts: EgressCounts | IngressCounts) -> dict[str, Any]:
    """For `/status`."""
    found: dict[str, Any] = _converter.unstructure(counts)
    return found


def from_status(kind: type[_Counts], status: Mapping[str, Any]) -> _Counts:
    """The counts in a `/status`. What another version does not say is 0, and what only it says is left out.

    Raises:
        ValueError: it has none.
    """
    losses = status.get("losses")
    if not isinstance(losses, Mapping):
        raise ValueError(f"version {status.get('version', 'unknown')} of gapconn does not say where data is lost")
    try:
        return _converter.structure(losses, kind)
    except Exception as error:  # cattrs raises groups of whatever a field made of it
        raise ValueError(f"its /status cannot be understood: {error}") from error
