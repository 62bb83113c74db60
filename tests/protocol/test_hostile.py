"""Whatever bytes arrive: nothing is raised, memory stays bounded, every drop is counted, and the session goes on."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gapconn.protocol.events import Event, MessageDelivered
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.wire import Announcement, Header, encode_datagram
from tests.protocol.frames import EPOCH, LINK_ID, Egress, Session, burst, bursts

BITS = {
    "magic": 16,
    "version": 8,
    "type": 8,
    "flags": 16,
    "symbol_bytes": 16,
    "link_id": 32,
    "blocks": 16,
    "repair_symbols": 8,
    "key_id": 8,
    "epoch": 64,
    "sequence": 64,
    "message": 64,
    "message_bytes": 32,
    "symbol": 32,
}
ANNOUNCED_BITS = {
    "previous_epoch": 64,
    "messages_sent": 64,
    "records_sent": 64,
    "records_filtered": 64,
    "heartbeat_interval_ms": 32,
    "interruption_timeout_ms": 32,
    "message_bytes_max": 32,
    "mtu_bytes": 16,
    "symbol_bytes_max": 16,
    "security_mode": 8,
    "fec_source_symbols": 8,
    "fec_repair_symbols": 8,
    "phase": 8,
    "reserved": 96,
}


def extreme(bits: int) -> st.SearchStrategy[int]:
    """Numbers at the edges of a field of so many bits, and of smaller ones."""
    edges = {0, 1, 2, 3, 33, *(2**n + d for n in (8, 16, 31, 32, 53, 62, 63, 64) for d in (-1, 0, 1))}
    return st.sampled_from(sorted(edge for edge in edges if edge < 2**bits))


def extremes(bits: dict[str, int]) -> st.SearchStrategy[dict[str, int]]:
    """A few fields, with extreme numbers."""
    return st.dictionaries(st.sampled_from(sorted(bits)), st.none(), max_size=5).flatmap(
        lambda names: st.fixed_dictionaries({name: extreme(bits[name]) for name in names})
    )


@st.composite
def forged(draw: st.DrawFn, epochs: st.SearchStrategy[int] = st.just(EPOCH)) -> bytes:  # noqa: B008  # strategies are immutable
    """A datagram with a check that fits, near to a good one, with some fields at their extremes."""
    session = Session(epoch=draw(epochs), sequence=draw(st.integers(0, 9)), messages=draw(st.integers(0, 9)))
    size = draw(st.sampled_from([1, 33, 64, 100, 1_400]))
    payload = draw(st.sampled_from([bytes(size), b"\xff" * size]))
    kind = draw(st.sampled_from(DatagramType))
    header = Header(
        type=kind,
        link_id=LINK_ID,
        epoch=session.epoch,
        sequence=session.sequence,
        **(
            {"symbol_bytes": size, "message_bytes": 3 * size + 33, "blocks": 1, "message": session.messages}
            if kind is DatagramType.DATA
            else {}
        ),
    )
    if kind is not DatagramType.DATA:
        said = Announcement.unpack(session.heartbeat()[48:-8])
        payload = attrs.evolve(said, **draw(extremes(ANNOUNCED_BITS))).pack()
    return encode_datagram(attrs.evolve(header, **draw(extremes(BITS))), payload)


damaged = st.builds(
    lambda datagram, place, change: datagram[:place] + bytes([datagram[place] ^ change]) + datagram[place + 1 :],
    st.sampled_from([Session().startup(), Session().message(bytes(500))[2], Session(epoch=EPOCH + 1).heartbeat()]),
    st.integers(0, 119),
    st.integers(1, 255),
)
truncated = st.builds(lambda datagram, length: datagram[:length], damaged | forged(), st.integers(0, 119))
rubbish = st.one_of(
    st.binary(max_size=200),
    st.binary(min_size=60, max_size=130).map(lambda tail: b"GC\1" + tail),
    damaged,
    truncated,
)


@given(st.lists(st.one_of(forged(), forged(extreme(64)), rubbish), max_size=25), st.floats(0, 2))
@settings(deadline=None, max_examples=100)
@pytest.mark.req("GC-MOD-5", "GC-MOD-6", "GC-LIM-1")
def test_nothing_is_raised_and_every_datagram_is_used_or_counted_once(datagrams: list[bytes], pause_s: float) -> None:
    """Forged datagrams may take the link or spoil its session: without encryption that is not promised otherwise."""
    egress = Egress.make(reassembly_bytes_max=5_000, message_bytes_max=4_000)
    receiver = egress.receiver
    for i, datagram in enumerate(datagrams):
        before = receiver.counters.dropped.total()
        egress.hear(datagram, after_s=pause_s if i % 3 == 0 else 0.0)
        dropped = receiver.counters.dropped.total() - before
        event("dropped" if dropped else "used")
        assert dropped in (0, 1)
        assert receiver.held_bytes <= 5_000
        deadline = receiver.next_deadline_s()
        assert deadline is None or deadline > egress.now_s, "a timer that has just been called is not due"
    assert receiver.counters.datagrams == len(datagrams)
    assert set(receiver.counters.dropped) <= set(DropReason)
    egress.wait(1e6)
    joined = Egress.make(reassembly_bytes_max=5_000, message_bytes_max=4_000)
    for each in bursts(datagrams):
        joined.receiver.receive(each, 0.0)
    joined.wait(1e6)
    assert joined.receiver.counters.datagrams == len(datagrams)


@given(
    st.lists(st.one_of(forged(st.sampled_from([1, EPOCH - 1, EPOCH + 1, 2**64 - 1])), rubbish), max_size=25), st.data()
)
@settings(deadline=None, max_examples=60)
@pytest.mark.req("GC-MOD-6", "GC-SESS-8")
def test_the_session_goes_on_whatever_else_arrives(foreign: list[bytes], data: st.DataObject) -> None:
    """Between its datagrams come others of all kinds, but none of the session itself and none that succeeds it."""
    session = Session()
    egress = Egress.make()
    egress.hear(session.startup())
    others = [d for d in foreign if not is_of(session, d)]
    delivered: list[Event] = []
    for number in range(4):
        delivered += egress.hear([others.pop() for _ in range(min(len(others), data.draw(st.integers(0, 9))))])
        delivered += egress.hear(session.message(bytes([number]) * 200), session.heartbeat(), after_s=0.5)
    assert [bytes(e.body) for e in delivered if isinstance(e, MessageDelivered)] == [bytes([n]) * 200 for n in range(4)]
    assert (egress.receiver.epoch, egress.receiver.datagrams_missed) == (EPOCH, 0)


def is_of(session: Session, datagram: bytes) -> bool:
    """Whether the datagram has this epoch, or names it as the one before; whatever else is wrong with it."""
    epoch = session.epoch.to_bytes(8, "big")
    return datagram[16:24] == epoch or datagram[48:56] == epoch


@pytest.mark.req("GC-MOD-6")
@pytest.mark.parametrize("length", [0, 1, 55, 56, 57, 119, 120, 121, 1_472, 65_507])
@pytest.mark.parametrize("filling", [0x00, 0x47, 0xFF])
def test_bursts_of_one_byte_over_and_over(length: int, filling: int) -> None:
    egress = Egress.make()
    datagram = bytes([filling]) * length
    count = min(64, 65_507 // max(1, length))
    egress.receiver.receive(burst(*[datagram] * count), 0.0)
    assert egress.dropped == {DropReason.TOO_SHORT if length < 56 else DropReason.BAD_MAGIC: count}
    assert egress.receiver.take_events() == []
