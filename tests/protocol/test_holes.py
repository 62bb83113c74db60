"""Every missing datagram is put to one place: what the host dropped, what came damaged, and what never came."""

from __future__ import annotations

import attrs
import pytest

from gapconn.protocol.holes import Holes
from gapconn.protocol.registry import DropReason
from gapconn.protocol.wire import Burst, burst_of
from tests.protocol.frames import LINK_ID, Egress, Session, with_header


@pytest.mark.parametrize(
    ("unreadable", "dropped", "missing", "expected"),
    [
        (0, 0, 5, (0, 0)),
        (2, 0, 5, (2, 0)),
        (5, 0, 5, (5, 0)),
        (100, 0, 5, (5, 0)),
        (0, 3, 5, (0, 3)),
        (0, 64, 5, (0, 5)),
        (2, 64, 5, (2, 3)),
        (9, 9, 0, (0, 0)),
    ],
)
def test_a_hole_is_put_to_what_happened_before_it(
    unreadable: int, dropped: int, missing: int, expected: tuple[int, int]
) -> None:
    holes = Holes()
    holes.note_unreadable(unreadable)
    holes.note_dropped(dropped)
    holes.shown(missing)
    assert (holes.unreadable, holes.dropped_here) == expected
    assert not holes.pending
    holes.shown(7)
    assert (holes.unreadable, holes.dropped_here) == expected, "what happened before a hole explains no later one"


def dropped_before(datagram: bytes, count: int) -> Burst:
    (burst,) = burst_of([datagram])
    return attrs.evolve(burst, dropped_before=count)


def damaged(datagram: bytes) -> bytes:
    return datagram[:-1] + bytes([datagram[-1] ^ 1])


def numbered(count: int) -> list[bytes]:
    """HeartBeats with the sequences from 0 on."""
    session = Session()
    return [session.startup(), *(session.heartbeat() for _ in range(count - 1))]


def places(egress: Egress) -> tuple[int, int, int]:
    receiver = egress.receiver
    return receiver.datagrams_missed, receiver.missed_unreadable, receiver.missed_here


def test_what_this_host_dropped_is_told_from_what_the_link_lost() -> None:
    egress, sent = Egress.make(), numbered(20)
    egress.hear(sent[0])
    egress.hear(sent[3])
    assert places(egress) == (2, 0, 0)
    egress.receiver.receive(dropped_before(sent[9], 64), 0.0)
    assert places(egress) == (7, 0, 5)
    egress.hear(sent[12])
    assert places(egress) == (9, 0, 5)


def test_damaged_datagrams_are_found_where_they_are_missing() -> None:
    egress, sent = Egress.make(), numbered(20)
    egress.hear(sent[0], damaged(sent[1]), with_header(sent[2], magic=7), sent[3][:20], sent[4])
    assert places(egress) == (3, 3, 0)
    egress.hear(*[b"garbage" * 20] * 1000, sent[5])
    assert places(egress) == (3, 3, 0), "garbage beside a whole sequence is nobody's loss"
    egress.hear(sent[8])
    assert places(egress) == (5, 3, 0)


def test_late_datagrams_never_make_the_parts_more_than_the_whole() -> None:
    egress, sent = Egress.make(), numbered(20)
    egress.hear(sent[0])
    egress.receiver.receive(dropped_before(sent[5], 64), 0.0)
    assert places(egress) == (4, 0, 4)
    egress.hear(sent[2], sent[1])
    assert places(egress) == (2, 0, 2)


def test_a_late_datagram_shows_no_hole() -> None:
    egress, sent = Egress.make(), numbered(20)
    egress.hear(sent[0], sent[2])
    egress.receiver.receive(dropped_before(sent[1], 64), 0.0)
    egress.hear(sent[6])
    assert places(egress) == (3, 0, 3), "what was dropped is in the hole that shows next"


def test_a_stranger_is_named_with_its_address() -> None:
    egress, sent = Egress.make(), numbered(3)
    egress.hear(sent[0])
    (foreign,) = burst_of([Session(link_id=LINK_ID + 1).startup()])
    for now_s in (1.0, 2.0):
        egress.receiver.receive(attrs.evolve(foreign, came_from="192.0.2.9:4000"), now_s)
    (own,) = burst_of([sent[1]])
    egress.receiver.receive(attrs.evolve(own, came_from="192.0.2.1:5000"), 2.5)
    (stranger,) = egress.receiver.strangers
    assert (stranger.reason, stranger.identity, stranger.came_from) == (
        DropReason.FOREIGN_LINK, LINK_ID + 1, "192.0.2.9:4000",
    )  # fmt: skip
    assert (stranger.datagrams, stranger.first_heard_s, stranger.last_heard_s) == (2, 1.0, 2.0)
    assert egress.receiver.heard_from == "192.0.2.1:5000"
