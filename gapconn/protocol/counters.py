"""The counters of the receiving half of a link."""

from __future__ import annotations

from collections import Counter

import attrs

from gapconn.protocol.registry import DropReason, LossCause


@attrs.define(kw_only=True)
class ReceiverCounters:
    """What was received so far. Plain numbers; they only grow."""

    datagrams: int = 0
    bytes: int = 0
    """UDP payload bytes."""
    dropped: Counter[DropReason] = attrs.field(factory=Counter)
    datagrams_missed: int = 0
    """Of sessions that are over; see `LinkReceiver.datagrams_missed` for all."""
    messages: int = 0
    records: int = 0
    body_bytes: int = 0
    """Bodies of messages that arrived whole, as they crossed."""
    plain_body_bytes: int = 0
    """The same bodies when inflated, as the messages announce it."""
    messages_rebuilt: int = 0
    """Of the messages, those of which symbols were lost and rebuilt."""
    symbols_rebuilt: int = 0
    messages_late: int = 0
    """Of the messages, those that had been reported as lost before."""
    records_late: int = 0
    """The records in them."""
    repeats_not_needed: int = 0
    """Of sessions that are over; see `LinkReceiver.repeats_not_needed` for all."""
    lost_forgotten: int = 0
    """Of sessions that are over; see `LinkReceiver.lost_forgotten` for all."""
    messages_lost: Counter[LossCause] = attrs.field(factory=Counter)
    records_lost: int = 0
    records_missing_ranges: int = 0
    sessions: int = 0
    interruptions: int = 0
    conflicts: int = 0
    foreign_links: int = 0
    unverified: int = 0
    """Times that datagrams were heard that could not be verified, and the link was not."""
