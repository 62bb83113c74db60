"""What the receiving half tells its owner: past tense, immutable; `match` over `Event` with `assert_never`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeAlias

import attrs

from gapconn.protocol.envelope import Copy, Message, Run, Span
from gapconn.protocol.positions import Standing
from gapconn.protocol.registry import Compression, DropReason, LossCause


class FollowReason(enum.Enum):
    """Why a session got the link."""

    FIRST_HEARD = "first heard"
    RESUMED = "resumed from stored state"
    SUCCESSION = "named the session before it"
    AFTER_SHUTDOWN = "the session before it had ended"
    AFTER_SILENCE = "the session before it was silent"


@attrs.frozen(kw_only=True)
class SessionFollowed:
    """A session has the link now (GC-SESS-5 to 7)."""

    epoch: int
    previous_epoch: int
    """The session that was followed before; 0 if none."""
    reason: FollowReason


@attrs.frozen(kw_only=True)
class SessionEnded:
    """The followed session said Shutdown."""

    epoch: int
    messages_sent: int
    """In the whole session, as the ingress counted them."""
    records_sent: int


@attrs.frozen(kw_only=True)
class SessionCutOff:
    """Another session has the link, and the end of this one was not heard (GC-SESS-14)."""

    epoch: int
    next_message: int
    """What was sent in it from this message on is not known; 0 if nothing of it was ever heard."""


@attrs.frozen(kw_only=True)
class LinkInterrupted:
    """Nothing was heard of the followed session for the interruption timeout (GC-SESS-13)."""

    epoch: int
    """0 if nothing was ever heard."""
    silent_s: float
    """Seconds since the last datagram of the session, or since the start."""


@attrs.frozen(kw_only=True)
class LinkRestored:
    """The link is heard again after an interruption."""

    epoch: int
    silent_s: float
    """Seconds for which nothing was heard."""


@attrs.frozen(kw_only=True)
class ConflictDetected:
    """Two ingresses send on this link (GC-SESS-11)."""

    epoch: int
    """Of the session that keeps the link."""
    rival_epoch: int
    rival_from: str = attrs.field(default="", eq=False)
    """The rival's address, as its datagrams say it; empty where nobody knows."""


@attrs.frozen(kw_only=True)
class ConflictCleared:
    """The rival has been silent for an interruption timeout."""

    rival_epoch: int


@attrs.frozen(kw_only=True)
class ForeignLinkDetected:
    """An ingress of another link sends to this egress (GC-SESS-12)."""

    link_id: int
    came_from: str = attrs.field(default="", eq=False)
    """Its address, as the datagram says it; empty where nobody knows."""


@attrs.frozen(kw_only=True)
class UnverifiedDetected:
    """While the link is not heard, datagrams arrive that say they are of it and cannot be verified (GC-SEC-8)."""

    reason: DropReason
    """Why the first of them was dropped."""
    key_id: int
    """With which it says it is sealed; 0 if it does not."""


@attrs.frozen(kw_only=True)
class UnverifiedCleared:
    """The link is heard again, or nothing more was heard that could not be verified."""


@attrs.frozen(kw_only=True)
class MessageDelivered:
    """A message arrived whole and is next in order; or it was reported as lost before, and comes late (GC-DLV-31)."""

    epoch: int
    number: int
    first_record: int
    """Records sent in the session before this message."""
    record_count: int
    runs: list[Run]
    """Positions of the records in it."""
    already_delivered: Mapping[tuple[str, int], int]
    """By (stream, partition): records at or before this position were delivered before and are to be dropped; of a late
    message, but for those that were reported as missing (GC-DLV-33)."""
    positions: Mapping[tuple[str, int], Standing]
    """By (stream, partition) of the runs: how far it is delivered with this message."""
    body: memoryview
    """The batch, as it crossed; empty for a message that only told positions and has nothing for the sink."""
    compression: Compression = Compression.NONE
    """How the body is compressed: `gapconn.protocol.compression.inflate` makes the batch of it (GC-COMP-4)."""
    plain_bytes: int = 0
    """Length of the body when inflated; 0 if it is plain."""
    spans: tuple[Span, ...] = ()
    """What a repair settles; empty for all other messages."""
    late: bool = False
    """Whether it was reported as lost before: it comes out of order."""
    copies: tuple[Copy, ...] = ()
    """What a copy settles; empty for all other messages."""
    copied: Message | None = None
    """The message of an earlier session that is in a copy."""
    ahead: bool = False
    """Whether earlier messages are still waited for (GC-DLV-35): `MessageSettled` follows."""
    overtaken: bool = False
    """Whether later messages were delivered before it, and it was not reported as lost."""
    claimed: Mapping[tuple[str, int], tuple[tuple[int, int], ...]] = attrs.field(factory=dict)
    """Of a repair or a late message, by (stream, partition): the positions, from first to last, that the egress misses
    and takes of it.
    Filled in by the egress, which knows its journal."""


@attrs.frozen(kw_only=True)
class MessageSettled:
    """A message was delivered ahead of earlier ones, and now all before it are delivered or lost (GC-DLV-35)."""

    epoch: int
    number: int
    next_record: int
    """Records sent in the session up to the end of this message."""
    positions: Mapping[tuple[str, int], Standing]
    """By (stream, partition) of its runs: how far it is delivered with this message."""


@attrs.frozen(kw_only=True)
class MessagesLost:
    """These messages will not be delivered (GC-DLV-10)."""

    epoch: int
    first: int
    last: int
    """Included."""
    cause: LossCause


@attrs.frozen(kw_only=True)
class RecordsLost:
    """So many records were in messages that were lost (GC-DLV-13)."""

    epoch: int
    first: int
    """Number of the first one: records that were sent in the session before it."""
    count: int
    cause: LossCause
    """Of the messages directly before; a range may mix causes."""


@attrs.frozen(kw_only=True)
class RecordsMissing:
    """Records of this stream partition are missing, between these positions (GC-DLV-14)."""

    epoch: int
    stream: str
    partition: int
    first: int
    last: int
    """Included. Not every position between need have held a record."""


Event: TypeAlias = (
    SessionFollowed
    | SessionEnded
    | SessionCutOff
    | LinkInterrupted
    | LinkRestored
    | ConflictDetected
    | ConflictCleared
    | ForeignLinkDetected
    | UnverifiedDetected
    | UnverifiedCleared
    | MessageDelivered
    | MessageSettled
    | MessagesLost
    | RecordsLost
    | RecordsMissing
)
