"""The two state machines of a link, as data (spec/session.md).

A link has two halves that never talk to each other backwards, so each has a machine of its own.

The *sending half* is simple: it announces itself, is active, and is closed. Its only trap is the ingress that starts
without stored state. It cannot name the session before it, so an egress that still hears the old one must not let it
in; it announces itself for as long as the egress needs to notice that the old one is silent, and only then sends data.

The *receiving half* decides who holds the link. Everything it hears is sorted into one of the inputs below by comparing
two epochs, and the table says what happens. The epoch is a fencing token: it only ever goes up, so a session that lost
the link can never take it back, however late its datagrams arrive. A newcomer gets the link at once when it proves that
it is the incumbent's successor, or when the incumbent has said goodbye or is silent; otherwise there are two ingresses,
and the newcomer waits.

Both tables are complete: each state has an entry for each input. "Nothing to do" and "a mistake" are different answers.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import attrs


class SenderState(enum.Enum):
    """Where the sending half is."""

    NEW = "new"
    ANNOUNCING = "announcing"
    ACTIVE = "active"
    CLOSED = "closed"


class SenderInput(enum.Enum):
    """What happens to the sending half."""

    START_AS_SUCCESSOR = "start with stored state"
    START_UNKNOWN = "start without stored state"
    ANNOUNCED = "announced long enough"
    HEARTBEAT_DUE = "heartbeat due"
    MESSAGE = "message from the source"
    STOP = "stop"


class SenderEffect(enum.Enum):
    """What the sending half does."""

    SEND_STARTUP = "send StartUp"
    SEND_HEARTBEAT = "send HeartBeat"
    SEND_DATA = "send Data"
    SEND_SHUTDOWN = "send Shutdown"
    NOTHING = "nothing"
    INVALID = "invalid"


class ReceiverState(enum.Enum):
    """Where the receiving half is with the session that it follows."""

    WAITING = "waiting"
    """Nothing was heard since the egress started."""
    FOLLOWING = "following"
    INTERRUPTED = "interrupted"
    CLOSED = "closed"
    """The followed session said Shutdown."""


class ReceiverInput(enum.Enum):
    """What the receiving half hears, sorted by epoch, or its silence timer."""

    OWN_STARTUP = "own StartUp"
    OWN_DATA = "own Data"
    OWN_HEARTBEAT = "own HeartBeat"
    OWN_SHUTDOWN = "own Shutdown"
    SUCCESSOR = "successor"
    NEWCOMER = "newcomer"
    STALE = "stale"
    SILENCE = "silence"


class ReceiverEffect(enum.Enum):
    """What the receiving half does."""

    ACCEPT = "accept"
    TAKE_OVER = "follow the newcomer, then accept"
    DROP_STALE = "drop (stale_session)"
    DROP_CONFLICT = "drop (conflict)"
    RAISE_INTERRUPTED = "raise link interrupted"
    NOTHING = "nothing"


SenderTable: TypeAlias = dict[tuple[SenderState, SenderInput], tuple[SenderEffect, SenderState]]
ReceiverTable: TypeAlias = dict[tuple[ReceiverState, ReceiverInput], tuple[ReceiverEffect, ReceiverState]]


def _sender_table() -> SenderTable:
    s, i, e = SenderState, SenderInput, SenderEffect
    return {
        (s.NEW, i.START_AS_SUCCESSOR): (e.SEND_STARTUP, s.ACTIVE),
        (s.NEW, i.START_UNKNOWN): (e.SEND_STARTUP, s.ANNOUNCING),
        (s.NEW, i.ANNOUNCED): (e.INVALID, s.NEW),
        (s.NEW, i.HEARTBEAT_DUE): (e.INVALID, s.NEW),
        (s.NEW, i.MESSAGE): (e.INVALID, s.NEW),
        (s.NEW, i.STOP): (e.NOTHING, s.CLOSED),
        (s.ANNOUNCING, i.START_AS_SUCCESSOR): (e.INVALID, s.ANNOUNCING),
        (s.ANNOUNCING, i.START_UNKNOWN): (e.INVALID, s.ANNOUNCING),
        (s.ANNOUNCING, i.ANNOUNCED): (e.SEND_HEARTBEAT, s.ACTIVE),
        (s.ANNOUNCING, i.HEARTBEAT_DUE): (e.SEND_STARTUP, s.ANNOUNCING),
        (s.ANNOUNCING, i.MESSAGE): (e.INVALID, s.ANNOUNCING),
        (s.ANNOUNCING, i.STOP): (e.SEND_SHUTDOWN, s.CLOSED),
        (s.ACTIVE, i.START_AS_SUCCESSOR): (e.INVALID, s.ACTIVE),
        (s.ACTIVE, i.START_UNKNOWN): (e.INVALID, s.ACTIVE),
        (s.ACTIVE, i.ANNOUNCED): (e.NOTHING, s.ACTIVE),
        (s.ACTIVE, i.HEARTBEAT_DUE): (e.SEND_HEARTBEAT, s.ACTIVE),
        (s.ACTIVE, i.MESSAGE): (e.SEND_DATA, s.ACTIVE),
        (s.ACTIVE, i.STOP): (e.SEND_SHUTDOWN, s.CLOSED),
        (s.CLOSED, i.START_AS_SUCCESSOR): (e.INVALID, s.CLOSED),
        (s.CLOSED, i.START_UNKNOWN): (e.INVALID, s.CLOSED),
        (s.CLOSED, i.ANNOUNCED): (e.NOTHING, s.CLOSED),
        (s.CLOSED, i.HEARTBEAT_DUE): (e.NOTHING, s.CLOSED),
        (s.CLOSED, i.MESSAGE): (e.INVALID, s.CLOSED),
        (s.CLOSED, i.STOP): (e.NOTHING, s.CLOSED),
    }


def _receiver_table() -> ReceiverTable:
    s, i, e = ReceiverState, ReceiverInput, ReceiverEffect
    return {
        # WAITING has a followed session only if the egress has stored state; its datagrams are then "own".
        (s.WAITING, i.OWN_STARTUP): (e.ACCEPT, s.FOLLOWING),
        (s.WAITING, i.OWN_DATA): (e.ACCEPT, s.FOLLOWING),
        (s.WAITING, i.OWN_HEARTBEAT): (e.ACCEPT, s.FOLLOWING),
        (s.WAITING, i.OWN_SHUTDOWN): (e.ACCEPT, s.CLOSED),
        (s.WAITING, i.SUCCESSOR): (e.TAKE_OVER, s.FOLLOWING),
        (s.WAITING, i.NEWCOMER): (e.TAKE_OVER, s.FOLLOWING),
        (s.WAITING, i.STALE): (e.DROP_STALE, s.WAITING),
        (s.WAITING, i.SILENCE): (e.RAISE_INTERRUPTED, s.INTERRUPTED),
        (s.FOLLOWING, i.OWN_STARTUP): (e.ACCEPT, s.FOLLOWING),
        (s.FOLLOWING, i.OWN_DATA): (e.ACCEPT, s.FOLLOWING),
        (s.FOLLOWING, i.OWN_HEARTBEAT): (e.ACCEPT, s.FOLLOWING),
        (s.FOLLOWING, i.OWN_SHUTDOWN): (e.ACCEPT, s.CLOSED),
        (s.FOLLOWING, i.SUCCESSOR): (e.TAKE_OVER, s.FOLLOWING),
        (s.FOLLOWING, i.NEWCOMER): (e.DROP_CONFLICT, s.FOLLOWING),
        (s.FOLLOWING, i.STALE): (e.DROP_STALE, s.FOLLOWING),
        (s.FOLLOWING, i.SILENCE): (e.RAISE_INTERRUPTED, s.INTERRUPTED),
        (s.INTERRUPTED, i.OWN_STARTUP): (e.ACCEPT, s.FOLLOWING),
        (s.INTERRUPTED, i.OWN_DATA): (e.ACCEPT, s.FOLLOWING),
        (s.INTERRUPTED, i.OWN_HEARTBEAT): (e.ACCEPT, s.FOLLOWING),
        (s.INTERRUPTED, i.OWN_SHUTDOWN): (e.ACCEPT, s.CLOSED),
        (s.INTERRUPTED, i.SUCCESSOR): (e.TAKE_OVER, s.FOLLOWING),
        (s.INTERRUPTED, i.NEWCOMER): (e.TAKE_OVER, s.FOLLOWING),
        (s.INTERRUPTED, i.STALE): (e.DROP_STALE, s.INTERRUPTED),
        (s.INTERRUPTED, i.SILENCE): (e.NOTHING, s.INTERRUPTED),
        # What arrives behind its Shutdown was overtaken by it: still the same session, still over.
        (s.CLOSED, i.OWN_STARTUP): (e.ACCEPT, s.CLOSED),
        (s.CLOSED, i.OWN_DATA): (e.ACCEPT, s.CLOSED),
        (s.CLOSED, i.OWN_HEARTBEAT): (e.ACCEPT, s.CLOSED),
        (s.CLOSED, i.OWN_SHUTDOWN): (e.ACCEPT, s.CLOSED),
        (s.CLOSED, i.SUCCESSOR): (e.TAKE_OVER, s.FOLLOWING),
        (s.CLOSED, i.NEWCOMER): (e.TAKE_OVER, s.FOLLOWING),
        (s.CLOSED, i.STALE): (e.DROP_STALE, s.CLOSED),
        (s.CLOSED, i.SILENCE): (e.NOTHING, s.CLOSED),
    }


SENDER_TABLE: Final = _sender_table()
RECEIVER_TABLE: Final = _receiver_table()


@attrs.define
class SenderMachine:
    """The sending half's state; `step` is the only way to change it."""

    state: SenderState = SenderState.NEW

    def step(self, what: SenderInput) -> SenderEffect:
        """Take `what` in; what is to be done."""
        effect, self.state = SENDER_TABLE[self.state, what]
        return effect


@attrs.define
class ReceiverMachine:
    """The receiving half's state; `step` is the only way to change it."""

    state: ReceiverState = ReceiverState.WAITING

    def step(self, what: ReceiverInput) -> ReceiverEffect:
        """Take `what` in; what is to be done."""
        effect, self.state = RECEIVER_TABLE[self.state, what]
        return effect


def sender_table_markdown() -> str:
    """The sending half's table as it stands in spec/session.md."""
    return _markdown(
        SenderState, SenderInput, {(s, i): f"{e.value}; {n.value}" for (s, i), (e, n) in SENDER_TABLE.items()}
    )


def receiver_table_markdown() -> str:
    """The receiving half's table as it stands in spec/session.md."""
    return _markdown(
        ReceiverState, ReceiverInput, {(s, i): f"{e.value}; {n.value}" for (s, i), (e, n) in RECEIVER_TABLE.items()}
    )


def _markdown(states: type[enum.Enum], inputs: type[enum.Enum], cells: dict[tuple[enum.Enum, enum.Enum], str]) -> str:
    lines = [
        "| input \\ state | " + " | ".join(str(s.value) for s in states) + " |",
        "| --- |" + " --- |" * len(states),
    ]
    lines += [f"| {i.value} | " + " | ".join(cells[s, i] for s in states) + " |" for i in inputs]
    return "\n".join(lines) + "\n"
