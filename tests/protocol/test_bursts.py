"""However the kernel groups datagrams to bursts, the same happens as if each came alone.

A receiver takes whole runs of a burst at once. That is a short cut, and this is what it must not change.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gapconn.protocol.envelope import Run
from gapconn.protocol.receiver import LinkReceiver
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.wire import SEQUENCE_LIMIT, Header, encode_datagram
from tests.protocol.frames import EPOCH, LINK_ID, Egress, Session, burst, bursts, plain, with_header

TOP_64 = 2**64 - 1


@st.composite
def stretches(draw: st.DrawFn) -> list[list[bytes]]:
    """Stretches of datagrams that follow each other, of several sessions, most of equal length; some in a bad state."""
    own = Session(block_symbols=draw(st.sampled_from([4, 4, 2])), repair_symbols=draw(st.sampled_from([0, 0, 1, 3])))
    others = [Session(epoch=EPOCH - 1), Session(epoch=EPOCH + 5), Session(epoch=EPOCH + 1, previous_epoch=EPOCH)]
    foreign = Session(link_id=LINK_ID + 1)
    made: list[list[bytes]] = [[own.startup()]]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["message"] * 6 + ["lost", "announce", "other", "foreign", "odd", "again", "run"]))
        event(kind)
        match kind:
            case "message" | "lost":
                last = own.records - 1
                runs = [Run("s", 0, last, last + 1, last + 2, 2)]
                datagrams = own.message(bytes(draw(st.integers(0, 600))), runs=runs, record_count=2)
                if kind == "message":
                    made.append(datagrams)
            case "announce":
                what = draw(st.sampled_from([own.heartbeat, own.heartbeat, own.startup, own.shutdown]))
                made.append([what() for _ in range(draw(st.integers(1, 3)))])
            case "other" | "foreign":
                session = foreign if kind == "foreign" else draw(st.sampled_from(others))
                made.append([session.heartbeat(), *session.message(bytes(draw(st.integers(0, 200))))])
            case "odd":
                made.append([draw(st.binary(max_size=60))])
            case "again":
                made.append([own.again(datagram) for datagram in draw(st.sampled_from(made)) if len(datagram) >= 56])
            case _:
                made.append(draw(raw_runs()))
    return made


@st.composite
def raw_runs(draw: st.DrawFn) -> list[bytes]:
    """Datagrams that continue each other, or nearly so, from a header near the limits of what is well formed."""
    header = Header(
        type=draw(st.sampled_from([DatagramType.DATA] * 4 + [DatagramType.HEARTBEAT])),
        link_id=LINK_ID,
        epoch=draw(st.sampled_from([0, EPOCH, EPOCH])),
        sequence=draw(st.sampled_from([0, 2, 3, 500_000, 5_000_000, SEQUENCE_LIMIT - 2, TOP_64 - 1])),
        symbol_bytes=64,
        blocks=draw(st.sampled_from([0, 1, 1, 2, 2, 200])),
        repair_symbols=draw(st.sampled_from([0, 0, 2, 6, 250])),
        message=draw(st.sampled_from([0, 3, 4])),
        message_bytes=draw(st.sampled_from([10, 300, 20_000, 70_000])),
        symbol=draw(st.sampled_from([0, 1, 3, 4, 5, 312, 313, 2**32 - 3])),
    )
    changing = draw(
        st.sampled_from([None, None, "message", "blocks", "epoch", "link_id", "type", "message_bytes", "flags"])
    )
    datagrams = []
    for i in range(draw(st.integers(1, 6))):
        if changing is not None and i:
            header = attrs.evolve(header, **{changing: getattr(header, changing) + 1})
        carry, symbol = divmod(header.symbol + i, 2**32)  # behind the top the next field counts, as in the last word
        datagrams.append(
            encode_datagram(
                attrs.evolve(
                    header,
                    sequence=(header.sequence + i) & TOP_64,
                    symbol=symbol,
                    message_bytes=header.message_bytes + carry,
                ),
                bytes(64),
            )
        )
    return datagrams


@st.composite
def paths(draw: st.DrawFn) -> list[list[bytes]]:
    """What arrives, in groups of datagrams that arrive at the same time."""
    arriving = [datagram for stretch in draw(stretches()) for datagram in stretch]
    for _ in range(draw(st.integers(0, 4))):
        place, to = draw(st.integers(0, len(arriving) - 1)), draw(st.integers(0, len(arriving) - 1))
        match draw(st.sampled_from(["move", "copy", "drop", "damage"])):
            case "move":
                arriving.insert(to, arriving.pop(place))
            case "copy":
                arriving.insert(to, arriving[place])
            case "drop" if len(arriving) > 1:
                arriving.pop(place)
            case _ if arriving[place]:
                flipped = bytearray(arriving[place])
                flipped[to % len(flipped)] ^= 1
                arriving[place] = bytes(flipped)
            case _:
                pass
    groups = []
    while arriving:
        size = draw(st.integers(1, 20))
        groups.append(arriving[:size])
        arriving = arriving[size:]
    return groups


def state_of(receiver: LinkReceiver) -> object:
    """All that can be asked of a receiver."""
    return (
        attrs.astuple(receiver.counters, recurse=False),
        receiver.announcement,
        receiver.epoch,
        receiver.state,
        receiver.conflict,
        receiver.datagrams_missed,
        receiver.held_bytes,
        receiver.held_messages,
        receiver.next_message,
        receiver.next_record,
        receiver.next_deadline_s(),
    )


@given(paths(), st.lists(st.sampled_from([0.0, 0.01, 0.25, 3.1]), min_size=1, max_size=5), st.integers(1, 64))
@settings(deadline=None, max_examples=150)
@pytest.mark.req("GC-MOD-1", "GC-MOD-4", "GC-MOD-5", "GC-DLV-6")
def test_bursts_are_what_they_hold(path: list[list[bytes]], pauses_s: list[float], rows_max: int) -> None:
    alone, joined = Egress.make(), Egress.make()
    for i, datagrams in enumerate(path):
        pause_s = pauses_s[i % len(pauses_s)]
        expected = alone.hear(datagrams, after_s=pause_s)
        joined.now_s += pause_s
        for each in bursts(datagrams, rows_max):
            joined.receiver.receive(each, joined.now_s)
        events = joined.receiver.take_events()
        assert list(map(plain, events)) == list(map(plain, expected))
        assert state_of(joined.receiver) == state_of(alone.receiver)
    for reason in alone.dropped:
        event(reason.name.lower())


@pytest.mark.parametrize("field", [name for name in attrs.fields_dict(Header) if name not in ("sequence", "symbol")])
@pytest.mark.req("GC-MOD-1", "GC-MOD-5")
def test_a_datagram_that_differs_in_any_other_field_begins_a_run_of_its_own(field: str) -> None:
    first = Session(symbol_bytes=64, block_symbols=3, sequence=10, messages=3).symbols(bytes(300))[0]
    startup = Session(sequence=9).startup()
    header = Header.unpack(first)
    second = with_header(first, sequence=11, symbol=1, **{field: getattr(header, field) + 1})
    third = with_header(second, sequence=12, symbol=2)
    alone, joined = Egress.make(), Egress.make()
    alone.hear(startup, first, second, third)
    joined.receiver.receive(burst(startup, first, second, third), 0.0)
    assert state_of(joined.receiver) == state_of(alone.receiver)


@pytest.mark.req("GC-MOD-3")
def test_a_burst_may_begin_anywhere_in_its_slab_and_the_slab_be_used_again() -> None:
    session = Session(symbol_bytes=100)
    datagrams = session.message(bytes(range(250)))
    egress = Egress.make()
    for offset, pair in ((0, datagrams[:2]), (13, datagrams[2:])):
        each = burst(*pair, offset=offset)
        egress.receiver.receive(each, 0.0)
        each.slab.flat[:] = 0xFF
    (_, delivered) = egress.receiver.take_events()
    assert plain(delivered)[0] == "MessageDelivered"
    assert bytes(range(250)).__repr__() in plain(delivered)[1]


@pytest.mark.req("GC-WIRE-7")
def test_of_a_run_only_the_malformed_datagrams_are_dropped() -> None:
    """The later ones are behind the message's symbols; the first ones are fine."""
    session = Session(symbol_bytes=40, block_symbols=255)
    first, second = session.message(bytes(9))
    beyond = [with_header(second, symbol=symbol, sequence=symbol) for symbol in (2, 3)]
    egress = Egress.make()
    egress.receiver.receive(burst(first, second, *beyond), 0.0)
    assert egress.dropped == {DropReason.MALFORMED: 2}
    assert egress.receiver.next_message == 1


@pytest.mark.req("GC-MOD-5")
def test_a_burst_of_the_largest_count_is_taken() -> None:
    datagrams = [Session(sequence=i).heartbeat() for i in range(500)]
    egress = Egress.make()
    egress.receiver.receive(burst(*datagrams), 0.0)
    assert (egress.dropped, egress.receiver.counters.datagrams, egress.receiver.datagrams_missed) == ({}, 500, 0)
