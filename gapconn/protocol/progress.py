"""How far an egress has come: what it stores, and what its next life goes on from."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from gapconn.protocol.positions import Standing, StreamPartition
from gapconn.protocol.reassembler import Ahead
from gapconn.ranges import Range


@attrs.frozen(kw_only=True)
class Progress:
    """What an egress has delivered: its stored state (GC-SESS-9)."""

    epoch: int
    next_message: int
    """All messages before it are settled."""
    next_record: int
    """Records of the session seen or counted as lost so far."""
    positions: Mapping[StreamPartition, Standing]
    """By (stream, partition): how far it was delivered."""
    messages_known: int = 0
    """Messages of the session that are known to have been sent; those from `next_message` on were not delivered."""
    records_known: int = 0
    ended: bool = False
    """Whether the session's Shutdown was heard: then no more was sent than is known."""
    lost: tuple[Range, ...] = ()
    """Of the messages before `next_message`, those that are lost and are taken when they are repeated (GC-DLV-34)."""
    joined_at: int = 0
    """Of the messages before this one it was never reported which records were in them (GC-DLV-11)."""
    ahead: tuple[Ahead, ...] = ()
    """Of the messages from `next_message` on, those that were delivered (GC-DLV-36)."""
