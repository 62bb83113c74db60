"""Both halves of a link with losses between them: what repair symbols can make good is delivered, the rest reported."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gapconn.fec.isal import IsalCodec, wheel_library
from gapconn.protocol.events import Event, MessageDelivered, MessagesLost
from gapconn.protocol.fec import Codec, NumpyCodec
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.wire import Slab
from gapconn.testing.memory_gap import datagrams_of
from tests.protocol.frames import LINK_ID, bursts


def fast_codec() -> Codec:
    path = wheel_library()
    assert path is not None
    return IsalCodec(path, "wheel")


@attrs.define
class Crossing:
    """Messages from a sender to a receiver, and what becomes of them."""

    repair_share: int
    codec: Codec = attrs.field(factory=fast_codec)
    mtu_bytes: int = 1_500
    sender: LinkSender = attrs.field(init=False)
    receiver: LinkReceiver = attrs.field(init=False)
    sent: list[bytes] = attrs.field(factory=list)
    lost_datagrams: int = 0
    now_s: float = 0.0

    def __attrs_post_init__(self) -> None:
        settings = SenderSettings(
            link_id=LINK_ID, epoch=2, previous_epoch=1, mtu_bytes=self.mtu_bytes, repair_share=self.repair_share
        )
        self.sender = LinkSender(settings, self.codec)
        self.receiver = LinkReceiver(ReceiverSettings(link_id=LINK_ID), now_s=0.0, codec=self.codec)
        for burst in self.sender.start(0.0):
            self.receiver.receive(burst, 0.0)

    def message(self, body: bytes) -> list[bytes]:
        """The datagrams of the next message."""

        def write(buffer: bytearray, offset: int) -> None:
            buffer[offset:] = body

        self.sender.compose([], 1, write, self.now_s)
        self.sent.append(body)
        datagrams: list[bytes] = []
        while (burst := self.sender.next_burst(Slab())) is not None:
            datagrams += datagrams_of(burst)
        return datagrams

    def arrive(self, datagrams: list[bytes], lost: set[int]) -> None:
        """These datagrams arrive, but for those at the places `lost`."""
        self.lost_datagrams += len(lost)
        for burst in bursts(d for i, d in enumerate(datagrams) if i not in lost):
            self.receiver.receive(burst, self.now_s)

    def end(self) -> list[Event]:
        """What became of all."""
        self.now_s += 1.0
        for burst in self.sender.handle_timeout(self.now_s):
            self.receiver.receive(burst, self.now_s)
        self.receiver.handle_timeout(self.now_s + 1.0)
        events = self.receiver.take_events()
        told = {e.number for e in events if isinstance(e, MessageDelivered)}
        for e in events:
            if isinstance(e, MessagesLost):
                told |= {*range(e.first, e.last + 1)}
            elif isinstance(e, MessageDelivered):
                assert bytes(e.body) == self.sent[e.number]
        assert told == {*range(len(self.sent))}, "each is delivered or reported"
        assert self.receiver.datagrams_missed == self.lost_datagrams, "loss of datagrams stays exact (GC-DLV-12)"
        assert self.receiver.held_bytes == 0
        return events


def lost_messages(events: list[Event]) -> int:
    return sum(e.last - e.first + 1 for e in events if isinstance(e, MessagesLost))


@pytest.mark.req("GC-FEC-3", "GC-MOD-1", "GC-DLV-12")
def test_a_tenth_lost_with_three_tenths_of_repair_symbols() -> None:
    chance = random.Random(1)
    link = Crossing(3_000)
    for _ in range(30):
        datagrams = link.message(chance.randbytes(256 * 1024 - chance.randrange(2_000)))
        link.arrive(datagrams, {i for i in range(len(datagrams)) if chance.random() < 0.1})
    assert lost_messages(link.end()) == 0
    counts = link.receiver.counters
    assert counts.messages == counts.messages_rebuilt == 30
    assert 30 * 10 < counts.symbols_rebuilt < link.lost_datagrams, "some of the lost ones were repair symbols"


@pytest.mark.req("GC-FEC-1", "GC-FEC-3", "GC-MOD-1")
def test_bursts_of_thirty_lost_with_a_fifth_of_repair_symbols() -> None:
    """Wherever the burst is: its losses are spread over the blocks."""
    link = Crossing(2_000)
    chance = random.Random(2)
    body = chance.randbytes(256 * 1024)
    datagrams = link.message(body)
    link.arrive(datagrams, set())
    size = len(datagrams)
    for start in range(0, size, 7):
        link.arrive(link.message(body), {*range(start, min(start + 30, size))})
    events = link.end()
    assert lost_messages(events) == 0
    assert link.receiver.counters.messages_rebuilt > 25


@pytest.mark.req("GC-FEC-1", "GC-FEC-3")
def test_the_longest_burst_that_can_be_made_good_and_one_more() -> None:
    for extra in (0, 1):
        link = Crossing(2_000, NumpyCodec())
        datagrams = link.message(bytes(256 * 1024))
        announced = link.sender.counters.repair_symbols
        link.arrive(datagrams, {*range(40, 40 + announced + extra)})
        assert lost_messages(link.end()) == extra
        assert link.receiver.counters.symbols_rebuilt == (0 if extra else announced)


@given(
    share=st.sampled_from([0, 1, 500, 2_000, 10_000]),
    lengths=st.lists(st.one_of(st.integers(0, 500), st.integers(0, 40_000)), min_size=1, max_size=4),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6]),
    mtu_bytes=st.sampled_from([576, 200, 1_500]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=100)
@pytest.mark.req("GC-FEC-2", "GC-FEC-3", "GC-MOD-1", "GC-MOD-4")
def test_whatever_is_lost_a_message_is_delivered_unchanged_or_reported(
    share: int, lengths: list[int], loss: float, mtu_bytes: int, seed: int
) -> None:
    """Up to the strength of the repair symbols and past it, with single losses and bursts."""
    chance = random.Random(seed)
    link = Crossing(share, mtu_bytes=mtu_bytes)
    for length in lengths:
        datagrams = link.message(chance.randbytes(length))
        lost = {i for i in range(len(datagrams)) if chance.random() < loss}
        if chance.random() < 0.5:
            start = chance.randrange(len(datagrams))
            lost = {*range(start, min(len(datagrams), start + chance.randrange(1, 40)))}
        link.arrive(datagrams, lost)
    # The one heartbeat of `end` must be heard, and it is.
    events = link.end()
    event(f"lost {min(1, lost_messages(events))}, rebuilt {min(1, link.receiver.counters.messages_rebuilt)}")


@pytest.mark.req("GC-FEC-5", "GC-WIRE-8")
@pytest.mark.parametrize(
    ("share", "announced"), [(0, (0, 0)), (500, (128, 7)), (2_000, (128, 26)), (10_000, (127, 127))]
)
def test_a_session_announces_what_it_does(share: int, announced: tuple[int, int]) -> None:
    link = Crossing(share)
    said = link.receiver.announcement
    assert said is not None
    assert (said.fec_source_symbols, said.fec_repair_symbols) == announced


@pytest.mark.req("GC-FEC-5")
def test_the_smallest_message_has_a_repair_symbol_too() -> None:
    link = Crossing(1)
    source, repair = link.message(b"small")
    assert link.sender.counters.repair_symbols == 1
    link.arrive([source, repair], {0})
    assert lost_messages(link.end()) == 0
