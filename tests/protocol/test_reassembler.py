"""Reassembly: whole messages in order, gaps that are given up in bounded time and memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.fec import NumpyCodec
from gapconn.protocol.reassembler import Reassembler, Settled
from gapconn.protocol.registry import MESSAGES_HELD_MAX, DatagramType, DropReason, LossCause
from gapconn.protocol.wire import Header
from tests.protocol.frames import Session, with_header, with_payload

Drop = tuple[int, DropReason | None]
TAKEN: Drop = (0, None)


def reassembler(
    *, next_message: int = 0, bytes_max: int = 1 << 20, message_bytes_max: int = 4_096, hold_s: float = 1.6
) -> Reassembler:
    return Reassembler(
        next_message=next_message,
        bytes_max=bytes_max,
        message_bytes_max=message_bytes_max,
        hold_s=hold_s,
        codec=NumpyCodec(),
    )


def add(to: Reassembler, *datagrams: bytes, now_s: float = 0.0) -> Drop:
    """Add datagrams that continue each other; what was dropped."""
    payloads = np.stack([np.frombuffer(datagram[48:-8], np.uint8) for datagram in datagrams])
    return to.add(Header.unpack(datagrams[0]), payloads, now_s)


def fates(settled: Iterable[Settled]) -> list[bytes | LossCause]:
    """The fate of each message: its body, or why it was lost. Checks that no number is left out or told twice."""
    told: list[bytes | LossCause] = []
    for item in settled:
        assert item.first == len(told)
        if item.message is None:
            assert item.cause is not None
            told += [item.cause] * (item.last - item.first + 1)
        else:
            assert item.first == item.last
            told.append(bytes(item.message.body))
    return told


# -- whole messages, in order --------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=150), min_size=1, max_size=5), st.integers(33, 80), st.integers(1, 4), st.randoms())
@settings(deadline=None)
@pytest.mark.req("GC-MOD-1", "GC-MOD-2", "GC-DLV-4")
def test_symbols_in_any_order_become_the_messages_in_theirs(
    bodies: list[bytes], symbol_bytes: int, block_symbols: int, order: random.Random
) -> None:
    session = Session(symbol_bytes=symbol_bytes, block_symbols=block_symbols)
    datagrams = [datagram for body in bodies for datagram in session.message(body)]
    order.shuffle(datagrams)
    subject = reassembler()
    for datagram in datagrams:
        assert add(subject, datagram) == TAKEN
    assert fates(subject.settled) == bodies
    assert (subject.held_bytes, subject.held_messages, subject.next_message) == (0, 0, len(bodies))


@pytest.mark.req("GC-DLV-4")
def test_nothing_is_delivered_before_the_last_symbol() -> None:
    *most, last = Session(symbol_bytes=40, block_symbols=255).message(bytes(200))
    subject = reassembler()
    assert add(subject, *most) == TAKEN
    assert subject.settled == []
    add(subject, last)
    assert fates(subject.settled) == [bytes(200)]


@pytest.mark.req("GC-DLV-4", "GC-WIRE-11")
@pytest.mark.parametrize("damage", [0, 9, 24, 30, -1])
def test_a_whole_message_with_a_check_that_does_not_fit_is_lost_and_the_next_is_not(damage: int) -> None:
    session = Session(symbol_bytes=100)
    (good,) = session.message(b"body")
    message = bytearray(good[48 : 48 + Header.unpack(good).message_bytes])
    message[damage] ^= 1
    (bad,) = Session(symbol_bytes=100).symbols(bytes(message))
    subject = reassembler()
    assert add(subject, bad) == TAKEN
    for datagram in session.message(b"next"):
        add(subject, datagram)
    assert fates(subject.settled) == [LossCause.DAMAGED, b"next"]


# -- what is dropped -----------------------------------------------------------------------------------------------


@pytest.mark.req("GC-DLV-6")
def test_symbols_that_are_not_needed_are_dropped() -> None:
    session = Session(symbol_bytes=40)
    first, second = session.message(bytes(30))
    waiting = session.message(bytes(30))
    waiting = session.message(bytes(30))
    subject = reassembler()
    assert add(subject, first) == TAKEN
    assert add(subject, first) == (1, DropReason.NOT_NEEDED), "held"
    assert add(subject, *waiting) == TAKEN
    assert add(subject, waiting[1]) == (1, DropReason.NOT_NEEDED), "of a message that is complete and waits"
    add(subject, second)
    assert add(subject, first, second) == (2, DropReason.NOT_NEEDED), "of a delivered message"
    subject.settle_below(2, LossCause.GAP)
    assert fates(subject.settled) == [bytes(30), LossCause.GAP, bytes(30)]


@pytest.mark.req("GC-DLV-6")
def test_of_a_run_only_the_symbols_that_are_held_are_dropped() -> None:
    datagrams = Session(symbol_bytes=40, block_symbols=255).message(bytes(range(200)))
    subject = reassembler()
    add(subject, *datagrams[1:3])
    assert add(subject, *datagrams[:5]) == (2, DropReason.NOT_NEEDED)
    assert add(subject, *datagrams[5:]) == TAKEN
    assert fates(subject.settled) == [bytes(range(200))]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.req("GC-FEC-4", "GC-DLV-6")
def test_source_symbols_behind_those_that_were_enough_are_counted(together: bool) -> None:
    first, second, third, repair, _ = Session(symbol_bytes=40, repair_symbols=2).message(bytes(80))
    subject = reassembler()
    add(subject, repair)
    for datagrams in [[first, second, third]] if together else [[first], [second], [third]]:
        add(subject, *datagrams)
    assert fates(subject.settled) == [bytes(80)]
    assert subject.repeats_not_needed == 1


@pytest.mark.req("GC-FEC-4", "GC-DLV-6")
def test_a_whole_message_does_not_wait_for_its_repair_symbols() -> None:
    session = Session(symbol_bytes=40, repair_symbols=2)
    *source, first, second = session.message(bytes(30))
    subject = reassembler()
    assert add(subject, *source) == TAKEN
    assert fates(subject.settled) == [bytes(30)]
    assert add(subject, first, second) == (2, DropReason.NOT_NEEDED)
    both = session.message(bytes(31))
    assert add(subject, *both) == (2, DropReason.NOT_NEEDED), "one run"
    assert fates(subject.settled)[1:] == [bytes(31)]
    assert subject.settled[1].rebuilt == 0


# -- lost symbols that are rebuilt ---------------------------------------------------------------------------------


@given(
    length=st.integers(0, 600),
    symbol_bytes=st.integers(33, 60),
    block_symbols=st.integers(1, 6),
    repair_symbols=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-FEC-3", "GC-DLV-4", "GC-MOD-1")
def test_a_message_is_rebuilt_from_enough_symbols_of_each_block_and_from_no_fewer(
    length: int, symbol_bytes: int, block_symbols: int, repair_symbols: int, seed: int
) -> None:
    """Symbols come in any order, some twice; the message is there with the first that makes it whole, and is right."""
    chance = random.Random(seed)
    body = chance.randbytes(length)
    datagrams = Session(symbol_bytes=symbol_bytes, block_symbols=block_symbols, repair_symbols=repair_symbols).message(
        body
    )
    header = Header.unpack(datagrams[0])
    owed = [-(-(header.source_symbols - b) // header.blocks) for b in range(header.blocks)]
    arriving = [*enumerate(datagrams), *chance.sample([*enumerate(datagrams)], len(datagrams) // 2)]
    chance.shuffle(arriving)
    held: set[int] = set()
    subject = reassembler()
    for number, datagram in arriving[: chance.randint(0, len(arriving))]:
        block = (number if number < header.source_symbols else number - header.source_symbols) % header.blocks
        useful = any(count > 0 for count in owed) and number not in held
        owed[block] -= number not in held
        held.add(number)
        assert add(subject, datagram) == (TAKEN if useful else (1, DropReason.NOT_NEEDED))
        assert fates(subject.settled) == ([] if any(count > 0 for count in owed) else [body])
    if subject.settled:
        assert subject.held_bytes == 0
    else:
        subject.settle_below(1, LossCause.GAP)
        assert fates(subject.settled) == [LossCause.GAP]


@pytest.mark.req("GC-FEC-3")
def test_of_a_run_only_the_symbols_that_are_needed_are_taken() -> None:
    """Of the six repair symbols of three blocks that arrive at once, the fourth makes the message whole."""
    session = Session(symbol_bytes=40, block_symbols=2, repair_symbols=2)
    datagrams = session.message(bytes(range(180)))
    source, repair = datagrams[:6], datagrams[6:]
    subject = reassembler()
    add(subject, *source[1:3])
    add(subject, *source[5:6])
    assert add(subject, *repair) == (2, DropReason.NOT_NEEDED)
    assert fates(subject.settled) == [bytes(range(180))]
    assert subject.settled[0].rebuilt == 3


@pytest.mark.req("GC-FEC-3", "GC-MOD-1")
def test_what_is_rebuilt_from_a_wrong_symbol_is_discarded() -> None:
    *source, repair = Session(symbol_bytes=40, repair_symbols=1).message(bytes(60))
    wrong = with_payload(repair, bytes([repair[48] ^ 1]) + repair[49:-8])
    subject = reassembler()
    add(subject, *source[1:])
    assert add(subject, wrong) == TAKEN
    assert fates(subject.settled) == [LossCause.DAMAGED]
    assert subject.held_bytes == 0


@pytest.mark.req("GC-FEC-3", "GC-DLV-8")
def test_a_rebuilt_message_waits_for_its_turn_and_is_owed_nothing_more() -> None:
    session = Session(symbol_bytes=40, repair_symbols=1)
    first, second = session.message(bytes([1]) * 60), session.message(bytes([2]) * 60)
    subject = reassembler()
    add(subject, *second[1:])
    assert add(subject, second[0]) == (1, DropReason.NOT_NEEDED), "late, and not needed any more"
    assert subject.settled == []
    add(subject, *first[:2])
    add(subject, *first[3:])
    assert fates(subject.settled) == [bytes([1]) * 60, bytes([2]) * 60]
    assert [item.rebuilt for item in subject.settled] == [1, 1]


@pytest.mark.req("GC-LIM-1", "GC-LIM-2")
def test_repair_symbols_count_against_the_memory() -> None:
    """Room is kept for all that a message announces, however many of them come."""
    session = Session(symbol_bytes=100, repair_symbols=3)
    datagrams = session.message(bytes(100))
    subject = reassembler(bytes_max=5 * 101 + 2)
    for number, datagram in enumerate((datagrams[1], datagrams[4], datagrams[3])):
        assert add(subject, datagram) == (TAKEN if number < 2 else (1, DropReason.NOT_NEEDED))
    assert fates(subject.settled) == [bytes(100)]
    greedy = with_header(Session(symbol_bytes=100, messages=1).message(bytes(100))[0], repair_symbols=4)
    assert add(subject, greedy) == (1, DropReason.OVER_LIMIT)


@pytest.mark.req("GC-LIM-1")
def test_what_was_rebuilt_keeps_no_repair_symbols_in_memory() -> None:
    """What a sink is slow to take is counted by the length of the message."""
    datagrams = Session(symbol_bytes=10_000, block_symbols=2, repair_symbols=100).message(bytes(15_000))
    subject = reassembler(bytes_max=1 << 22, message_bytes_max=1 << 16)

    def rebuild() -> None:
        add(subject, datagrams[-1])
        add(subject, datagrams[-2])

    assert grown_bytes(rebuild) < 60_000
    assert fates(subject.settled) == [bytes(15_000)]


# -- what contradicts ----------------------------------------------------------------------------------------------


@pytest.mark.req("GC-DLV-5")
@pytest.mark.parametrize("change", ["message_bytes", "symbol_bytes", "blocks", "repair_symbols"])
def test_a_symbol_that_contradicts_the_others_is_dropped_and_changes_nothing(change: str) -> None:
    first, second, third = Session(symbol_bytes=40).message(bytes(range(80)))
    if change == "symbol_bytes":
        other = with_payload(with_header(second, symbol_bytes=39), bytes(39))
    else:
        other = with_header(second, **{change: getattr(Header.unpack(second), change) + 1})
    subject = reassembler()
    add(subject, first)
    held = subject.held_bytes
    assert add(subject, other) == (1, DropReason.INCONSISTENT_MESSAGE)
    assert subject.held_bytes == held
    add(subject, second)
    add(subject, third)
    assert fates(subject.settled) == [bytes(range(80))]


@pytest.mark.req("GC-LIM-2")
def test_a_message_over_the_limit_is_dropped_and_lost_like_any_other() -> None:
    session = Session(symbol_bytes=1_000)
    exact, longer = session.message(bytes(4_096 - 33)), session.message(bytes(4_096 - 32))
    after = session.message(b"after")
    subject = reassembler()
    assert [add(subject, datagram) for datagram in exact] == [TAKEN] * 5
    assert [add(subject, datagram) for datagram in longer] == [(1, DropReason.OVER_LIMIT)] * 5
    assert subject.held_bytes == 0
    deadline = subject.next_deadline_s()
    assert deadline is not None, "that it was sent is known"
    add(subject, *after)
    subject.expire(deadline)
    assert fates(subject.settled) == [bytes(4_096 - 33), LossCause.GAP, b"after"]
    assert add(subject, longer[0]) == (1, DropReason.OVER_LIMIT)


@pytest.mark.req("GC-LIM-1", "GC-LIM-2")
def test_a_message_that_alone_would_break_the_memory_limit_is_over_the_limit() -> None:
    """A message within its limit, but in symbols of one byte each, or in one symbol that is mostly fill."""
    tiny = Header(
        type=DatagramType.DATA, link_id=1, epoch=1, sequence=9, symbol_bytes=1, message_bytes=4_000, blocks=20
    )
    wide = Header(
        type=DatagramType.DATA, link_id=1, epoch=1, sequence=9, symbol_bytes=9_000, message_bytes=33, blocks=1
    )
    subject = reassembler(bytes_max=5_000)
    for header in (tiny, wide):
        payload = np.zeros((1, header.symbol_bytes), np.uint8)
        assert subject.add(header, payload, 0.0) == (1, DropReason.OVER_LIMIT)
    assert subject.held_bytes == 0


# -- gaps in bounded time ------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.floats(1e-3, 60))
@settings(deadline=None)
@pytest.mark.req("GC-DLV-8")
def test_a_missing_message_is_given_up_after_the_timeout_and_at_most_a_sixteenth(
    now_s: float, timeout_s: float
) -> None:
    session = Session()
    session.message(b"lost")
    subject = reassembler(hold_s=timeout_s)
    for datagram in session.message(b"x"):
        add(subject, datagram, now_s=now_s)
    assert subject.settled == []
    deadline = subject.next_deadline_s()
    assert deadline is not None
    assert now_s + timeout_s * (1 - 1e-6) <= deadline <= now_s + timeout_s * (17 / 16 + 1e-6)
    subject.expire(deadline - timeout_s / 100)
    assert subject.settled == []
    subject.expire(deadline)
    assert fates(subject.settled) == [LossCause.GAP, b"x"]
    assert subject.next_deadline_s() is None


@pytest.mark.req("GC-DLV-8")
def test_a_message_that_comes_in_time_is_delivered_and_holds_nothing_back_any_more() -> None:
    session = Session()
    late, *others = (session.message(bytes([i])) for i in range(3))
    subject = reassembler()
    for datagrams in others:
        add(subject, *datagrams)
    assert subject.next_deadline_s() is not None
    add(subject, *late, now_s=1.59)
    assert fates(subject.settled) == [b"\0", b"\1", b"\2"]
    assert subject.next_deadline_s() is None


@pytest.mark.req("GC-DLV-8", "GC-DLV-10")
def test_what_the_sender_says_it_sent_is_late_from_then_on() -> None:
    session = Session(symbol_bytes=40)
    incomplete, whole = session.message(bytes(30)), session.message(b"x")
    subject = reassembler()
    add(subject, incomplete[0], now_s=1.0)
    assert subject.next_deadline_s() is None, "nothing says that all of it was sent"
    subject.learn(2, 2.0)
    assert subject.next_deadline_s() == pytest.approx(3.6)
    add(subject, *whole, now_s=3.0)
    subject.expire(3.6)
    assert fates(subject.settled) == [LossCause.GAP, b"x"]


@pytest.mark.req("GC-DLV-8")
def test_each_gap_has_a_time_of_its_own() -> None:
    session = Session()
    messages = [session.message(bytes([i])) for i in range(5)]
    subject = reassembler()
    add(subject, *messages[1], now_s=0.0)
    add(subject, *messages[3], now_s=1.0)
    subject.learn(5, 2.0)
    told = []
    while (deadline := subject.next_deadline_s()) is not None:
        subject.expire(deadline)
        told.append((round(deadline, 6), len(fates(subject.settled))))
    assert told == [(1.6, 2), (2.6, 4), (3.6, 5)]
    gap = LossCause.GAP
    assert fates(subject.settled) == [gap, b"\1", gap, b"\3", gap]


@pytest.mark.req("GC-TIME-3")
def test_a_late_call_gives_up_all_that_was_due() -> None:
    session = Session()
    messages = [session.message(bytes([i])) for i in range(5)]
    subject = reassembler()
    for i in (1, 3):
        add(subject, *messages[i], now_s=float(i))
    subject.expire(100.0)
    gap = LossCause.GAP
    assert fates(subject.settled) == [gap, b"\1", gap, b"\3"]


@pytest.mark.req("GC-LIM-3")
def test_a_range_of_lost_messages_is_one_report_however_long() -> None:
    subject = reassembler()
    subject.learn(2**62, 0.0)
    subject.expire(2.0)
    assert subject.settled == [Settled(0, 2**62 - 1, None, LossCause.GAP)]


def test_a_timeout_of_zero_gives_up_at_once() -> None:
    session = Session()
    session.message(b"lost")
    subject = reassembler(hold_s=0.0)
    add(subject, *session.message(b"x"), now_s=5.0)
    deadline = subject.next_deadline_s()
    assert deadline is not None
    assert abs(deadline - 5.0) < 1e-6
    subject.expire(deadline)
    assert fates(subject.settled) == [LossCause.GAP, b"x"]


# -- bounded memory ------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-DLV-9")
def test_the_oldest_missing_message_makes_room_and_only_that() -> None:
    session = Session(symbol_bytes=100)
    messages = [session.message(bytes([i]) * 100) for i in range(6)]
    one = 2 * 101 + 2
    subject = reassembler(bytes_max=4 * one)
    add(subject, messages[0][0])
    add(subject, *messages[2])
    add(subject, messages[3][0])
    add(subject, *messages[4])
    assert (subject.settled, subject.held_bytes) == ([], 4 * one)
    assert add(subject, messages[5][0]) == TAKEN
    assert fates(subject.settled) == [LossCause.OVERFLOW], "message 0 was the oldest, 1 may still come"
    assert add(subject, *messages[1]) == TAKEN, "now 1 is the oldest, and makes room for itself: it comes late"
    late = subject.settled.pop()
    assert (late.first, late.late) == (1, True)
    assert fates(subject.settled) == [LossCause.OVERFLOW, LossCause.OVERFLOW, bytes([2]) * 100]
    assert add(subject, messages[3][1]) == TAKEN
    assert fates(subject.settled)[3:] == [bytes([3]) * 100, bytes([4]) * 100]


@pytest.mark.req("GC-DLV-9")
def test_what_is_complete_behind_the_message_that_makes_room_is_delivered() -> None:
    session = Session(symbol_bytes=100)
    messages = [session.message(bytes([i]) * 100) for i in range(4)]
    subject = reassembler(bytes_max=2 * (2 * 101 + 2))
    add(subject, *messages[1])
    add(subject, *messages[2])
    add(subject, *messages[3])
    assert fates(subject.settled) == [LossCause.OVERFLOW, *(bytes([i]) * 100 for i in (1, 2, 3))]


@pytest.mark.req("GC-DLV-9", "GC-MOD-6")
def test_the_oldest_message_of_all_is_given_up_when_there_is_no_room_for_it() -> None:
    """And once it is, nothing more has to go."""
    session = Session(symbol_bytes=100)
    first, second, third = (session.message(bytes([i]) * size) for i, size in enumerate((400, 100, 100)))
    subject = reassembler(bytes_max=600)
    add(subject, second[0])
    assert add(subject, first[0]) == (1, DropReason.OVER_LIMIT)
    assert fates(subject.settled) == [LossCause.OVERFLOW]
    add(subject, *third)
    add(subject, second[1])
    assert fates(subject.settled)[1:] == [bytes([1]) * 100, bytes([2]) * 100]


@pytest.mark.req("GC-LIM-1", "GC-DLV-9")
def test_so_many_messages_are_held_and_no_more() -> None:
    subject = reassembler(bytes_max=1 << 30)
    first = Header.unpack(Session(symbol_bytes=64).message(bytes(64))[0])
    payload = np.zeros((1, 64), np.uint8)
    for number in range(1, MESSAGES_HELD_MAX + 3):
        header = Header(
            type=DatagramType.DATA,
            link_id=first.link_id,
            epoch=first.epoch,
            sequence=number,
            message=number,
            message_bytes=first.message_bytes,
            symbol_bytes=64,
            blocks=1,
        )
        assert subject.add(header, payload, 0.0) == TAKEN
    assert subject.held_messages == MESSAGES_HELD_MAX
    assert fates(subject.settled) == [LossCause.OVERFLOW] * 3


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.booleans()), max_size=60), st.randoms())
@settings(deadline=None, max_examples=200)
@pytest.mark.req("GC-LIM-1", "GC-MOD-2", "GC-MOD-4", "GC-DLV-9")
def test_memory_is_bounded_whatever_arrives(arrivals: list[tuple[int, int, bool]], order: random.Random) -> None:
    """Symbols of many unfinished messages, over a limit of a few; each number is settled once, and in order."""
    bytes_max = 1_500
    subject = reassembler(bytes_max=bytes_max, message_bytes_max=1_000)
    now_s = 0.0
    sent = 0
    for number, index, late in arrivals:
        session = Session(symbol_bytes=order.choice([33, 64, 500]), block_symbols=255, messages=number)
        datagrams = session.symbols(bytes(order.choice([33, 64, 500, 1_000, 1_001])))
        now_s += 2.0 if late else 0.01
        subject.expire(now_s)
        add(subject, datagrams[index % len(datagrams)], now_s=now_s)
        sent = max(sent, number + 1)
        assert 0 <= subject.held_bytes <= bytes_max
        assert (subject.held_bytes == 0) == (subject.held_messages == 0)
        told = fates(subject.settled)
        assert len(told) == subject.next_message <= sent
    subject.settle_known(LossCause.SESSION_ENDED)
    assert len(fates(subject.settled)) == sent
    assert (subject.held_bytes, subject.held_messages) == (0, 0)


@pytest.mark.req("GC-LIM-1")
def test_a_link_that_loses_nothing_leaves_nothing_behind() -> None:
    subject = reassembler()
    header = Header.unpack(Session().message(b"x")[0])
    payload = np.frombuffer(Session().message(b"x")[0][48:-8], np.uint8).reshape(1, -1)

    def deliver(first: int, stop: int) -> None:
        for number in range(first, stop):
            changed = Header.unpack(header.pack()[:32] + number.to_bytes(8, "big") + header.pack()[40:])
            subject.add(changed, payload, number / 1_000)
            subject.settled.clear()

    deliver(0, 100)
    assert grown_bytes(lambda: deliver(100, 5_100)) < 20_000


@pytest.mark.req("GC-LIM-1", "GC-DLV-8")
def test_however_much_is_late_few_times_are_remembered() -> None:
    subject = reassembler()

    def learn() -> None:
        for number in range(1, 20_000):
            subject.learn(number, number / 20_000)

    assert grown_bytes(learn) < 20_000
    deadline = subject.next_deadline_s()
    assert deadline is not None
    assert deadline <= 1.6 * 17 / 16


def grown_bytes(work: Callable[[], None]) -> int:
    """Memory that is still held when the work is done."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    work()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


# -- the end of a session ------------------------------------------------------------------------------------------


def three_with_a_gap() -> tuple[Reassembler, list[list[bytes]]]:
    """Messages 1 and 3 are whole, 0 and 2 are missing, of 4 the first symbol is there, 5 was sent."""
    session = Session(symbol_bytes=40)
    messages = [session.message(bytes([i]) * 30) for i in range(6)]
    subject = reassembler()
    for datagrams in (messages[1], messages[3], messages[4][:1]):
        add(subject, *datagrams)
    subject.learn(6, 0.0)
    assert subject.settled == []
    return subject, messages


@pytest.mark.req("GC-SESS-10", "GC-MOD-4")
def test_settling_all_that_is_known_delivers_what_is_complete_and_loses_the_rest() -> None:
    subject, _ = three_with_a_gap()
    subject.settle_known(LossCause.SESSION_ENDED)
    lost = LossCause.SESSION_ENDED
    assert fates(subject.settled) == [lost, bytes([1]) * 30, lost, bytes([3]) * 30, lost, lost]
    assert (subject.held_bytes, subject.held_messages, subject.next_deadline_s()) == (0, 0, None)


def test_settling_what_is_complete_leaves_the_rest_open() -> None:
    subject, messages = three_with_a_gap()
    subject.settle_complete(LossCause.GAP)
    assert fates(subject.settled) == [LossCause.GAP, bytes([1]) * 30, LossCause.GAP, bytes([3]) * 30]
    assert subject.held_messages == 1
    add(subject, messages[4][1])
    assert fates(subject.settled)[4:] == [bytes([4]) * 30]


@pytest.mark.req("GC-DLV-11")
def test_what_lies_before_the_first_number_owed_is_not_needed() -> None:
    session = Session()
    messages = [session.message(bytes([i])) for i in range(3)]
    subject = reassembler(next_message=2)
    assert add(subject, *messages[1]) == (1, DropReason.NOT_NEEDED)
    assert add(subject, *messages[2]) == TAKEN
    assert [(item.first, item.last) for item in subject.settled] == [(2, 2)]
