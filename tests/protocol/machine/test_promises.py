"""What is promised where nothing, or only one thing, goes wrong; and timers at times that are on no grid."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gapconn.protocol.reassembler
from gapconn.protocol.events import LinkInterrupted, MessagesLost
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.wire import Burst, Slab
from tests.protocol.machine.machine import parts, ways_to_wait
from tests.protocol.machine.world import TIMEOUT_TICKS, World, small_limits

messages = st.fixed_dictionaries(
    {
        "parts": parts,
        "plain": st.integers(0, 2),
        "size": st.sampled_from([0, 30, 300, 3_000, 39_000]),
        "commit": st.booleans(),
    }
)
clean_steps = st.one_of(
    st.tuples(st.just("send"), messages),
    st.tuples(st.just("wait"), st.fixed_dictionaries({"ticks": st.integers(1, 100), "how": ways_to_wait})),
    st.tuples(st.just("restart"), st.fixed_dictionaries({"in_order": st.booleans()})),
)


@pytest.mark.req("GC-MOD-3", "GC-SESS-6", "GC-SESS-7")
@settings(deadline=None, max_examples=40)
@given(steps=st.lists(clean_steps, min_size=3, max_size=30), burst_max=st.sampled_from([1, 64]))
def test_a_clean_path_loses_nothing_and_drops_nothing(steps: list[tuple[str, Any]], burst_max: int) -> None:
    """Restarts of an ingress that keeps its state included, and an egress that is often too late for its timers."""
    with small_limits():
        world = World(burst_max=burst_max)
        world.start_ingress(host=0, keep=False)
        world.wait(ticks=TIMEOUT_TICKS, how="punctual")
        for name, arguments in steps:
            if name == "send":
                world.send(host=0, strokes=[], **arguments)
            elif name == "wait":
                world.wait(**arguments)
            else:
                if arguments["in_order"]:
                    world.stop_ingress(host=0, strokes=[])
                world.start_ingress(host=0, keep=True)
        world.settle()
        counters = world.receiver.counters
        assert counters.messages == sum(len(session.messages) for session in world.sessions.values())
        assert counters.records == sum(session.records for session in world.sessions.values())
        assert counters.datagrams == sum(session.types.total() for session in world.sessions.values())
        assert (counters.messages_lost.total(), counters.dropped.total(), world.receiver.datagrams_missed) == (0, 0, 0)
        assert (counters.records_lost, counters.records_missing_ranges, counters.conflicts) == (0, 0, 0)


@pytest.mark.req("GC-SESS-3", "GC-SESS-7")
@pytest.mark.parametrize("silent_ticks", range(17))
@pytest.mark.parametrize("how", ["punctual", "late"])
def test_a_replacement_on_a_new_host_loses_nothing(silent_ticks: int, how: str) -> None:
    """The ingress is gone, and another one without its state starts at once: it waits until the link is free."""
    with small_limits():
        world = World()
        world.start_ingress(host=0, keep=False)
        world.wait(ticks=TIMEOUT_TICKS + silent_ticks, how="punctual")
        world.kill_ingress(host=0)
        world.start_ingress(host=1, keep=False)
        world.wait(ticks=TIMEOUT_TICKS, how=how)
        world.send(host=1, parts=[[0, 3]], plain=2, size=3_000, commit=True, strokes=[])
        world.settle()
        counters = world.receiver.counters
        assert world.receiver.epoch == world.ingresses[1].epoch
        assert counters.records == world.sessions[world.receiver.epoch].records
        assert (counters.messages_lost.total(), counters.records_lost) == (0, 0)


@pytest.mark.req("GC-LIM-1")
def test_neither_end_grows_with_what_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that either end remembers, as large as it is when written down."""
    monkeypatch.setattr(gapconn.protocol.reassembler, "LOST_RANGES_MAX", 16)
    sender, receiver = _sender(), LinkReceiver(ReceiverSettings(link_id=7), now_s=0.0)
    sizes = []
    for number in range(4_000):
        now_s = number / 100
        bursts = sender.start(now_s) if number == 0 else sender.handle_timeout(now_s)
        for burst in bursts + _message(sender, now_s):
            if number % 50:  # now and then one is lost
                receiver.receive(burst, now_s)
        receiver.take_events()
        if number in (1_049, 3_999):
            sizes.append((len(pickle.dumps(sender)), len(pickle.dumps(receiver))))
    assert (receiver.counters.messages, receiver.counters.messages_lost.total()) == (3_920, 80)
    for before, after in zip(*sizes, strict=True):
        assert abs(after - before) < 200


# -- times on no grid -----------------------------------------------------------------------------------------

moments = st.floats(0, 1e6)
spans = st.floats(0.001, 100)


def _sender(**changes: Any) -> LinkSender:
    return LinkSender(SenderSettings(link_id=7, epoch=2, previous_epoch=1, **changes))


def _message(sender: LinkSender, now_s: float) -> list[Burst]:
    sender.compose([], 1, lambda buffer, offset: None, now_s)
    bursts = []
    while (burst := sender.next_burst(Slab())) is not None:
        bursts.append(burst)
    return bursts


@pytest.mark.req("GC-DLV-8")
@given(begin_s=moments, pauses_s=st.lists(spans, min_size=2, max_size=5), hold_s=st.floats(0.001, 10))
def test_a_missing_message_is_given_up_in_time_and_not_too_early(
    begin_s: float, pauses_s: list[float], hold_s: float
) -> None:
    sender = _sender()
    receiver = LinkReceiver(ReceiverSettings(link_id=7, hold_s=hold_s, interruption_timeout_s=1e9), now_s=begin_s)
    for burst in sender.start(begin_s):
        receiver.receive(burst, begin_s)
    now_s = begin_s
    learned_s: dict[int, float] = {}
    given_up_s: dict[int, float] = {}
    for number, pause_s in enumerate(pauses_s):
        _message(sender, now_s)  # it is lost
        now_s += pause_s
        (burst,) = _message(sender, now_s)
        while (deadline_s := receiver.next_deadline_s()) is not None and deadline_s <= now_s:
            _note_given_up(receiver, deadline_s, given_up_s)
        learned_s[2 * number] = now_s
        receiver.receive(burst, now_s)
    while len(given_up_s) < len(learned_s):
        deadline = receiver.next_deadline_s()
        assert deadline is not None
        _note_given_up(receiver, deadline, given_up_s)
    for number, since_s in learned_s.items():
        waited_s = given_up_s[number] - since_s
        rounding_s = 1e-9 * (1 + given_up_s[number])
        assert hold_s - rounding_s <= waited_s <= hold_s * 17 / 16 + rounding_s


def _note_given_up(receiver: LinkReceiver, now_s: float, given_up_s: dict[int, float]) -> None:
    receiver.handle_timeout(now_s)
    for event in receiver.take_events():
        if isinstance(event, MessagesLost):
            given_up_s |= dict.fromkeys(range(event.first, event.last + 1), now_s)
    later_s = receiver.next_deadline_s()
    assert later_s is None or later_s > now_s, "a timer that was called is still due"


@pytest.mark.req("GC-TIME-3", "GC-SESS-13")
@given(begin_s=moments, timeout_s=spans, pause_s=spans)
def test_a_timer_that_is_called_at_its_deadline_is_done(begin_s: float, timeout_s: float, pause_s: float) -> None:
    """A deadline that does nothing would be asked for again and again, without end."""
    receiver = LinkReceiver(
        ReceiverSettings(link_id=7, interruption_timeout_s=timeout_s, hold_s=timeout_s), now_s=begin_s
    )
    deadline_s = receiver.next_deadline_s()
    assert deadline_s is not None
    receiver.handle_timeout(deadline_s)
    assert [type(event) for event in receiver.take_events()] == [LinkInterrupted]
    assert receiver.next_deadline_s() is None
    sender = _sender(heartbeat_interval_s=timeout_s / 3, interruption_timeout_s=timeout_s)
    now_s = deadline_s + pause_s
    bursts = sender.start(now_s)
    for _ in range(3):
        due_s = sender.next_deadline_s()
        assert due_s is not None
        assert due_s > now_s
        now_s = due_s
        bursts += sender.handle_timeout(now_s)
    assert len(bursts) == 6
    for burst in bursts:
        receiver.receive(burst, now_s)
    receiver.take_events()
    silent_at_s = receiver.next_deadline_s()
    assert silent_at_s is not None
    receiver.handle_timeout(silent_at_s)
    assert [type(event) for event in receiver.take_events()] == [LinkInterrupted]
    assert receiver.next_deadline_s() is None
