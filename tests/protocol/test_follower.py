"""Who holds the link: the rules of spec/session.md one by one."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.events import (
    ConflictCleared,
    ConflictDetected,
    Event,
    FollowReason,
    LinkInterrupted,
    LinkRestored,
    SessionFollowed,
)
from gapconn.protocol.follower import Follower
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.states import ReceiverState

STARTUP, DATA, HEARTBEAT, SHUTDOWN = DatagramType
CONFLICT, STALE = DropReason.CONFLICT, DropReason.STALE_SESSION
TIMEOUT_S = 3.0
ACCEPTED, TAKEN = (None, False), (None, True)


@attrs.define
class Heard:
    """A follower, with the timer called before every datagram as `LinkReceiver` does."""

    follower: Follower

    def __call__(
        self, epoch: int, now_s: float, kind: DatagramType = DATA, previous_epoch: int | None = None
    ) -> tuple[DropReason | None, bool]:
        self.follower.handle_timeout(now_s)
        if kind is not DATA and previous_epoch is None:
            previous_epoch = 0
        return self.follower.hear(kind, epoch, previous_epoch, now_s)

    def events(self) -> list[Event]:
        events, self.follower.events = self.follower.events, []
        return events


def waiting(stored_epoch: int = 0, now_s: float = 0.0) -> Heard:
    return Heard(Follower(followed_epoch=stored_epoch, interruption_timeout_s=TIMEOUT_S, now_s=now_s))


def following(epoch: int = 100, now_s: float = 0.0) -> Heard:
    """A follower that has just heard its first session."""
    hear = waiting(now_s=now_s)
    assert hear(epoch, now_s) == TAKEN
    assert hear.events() == [SessionFollowed(epoch=epoch, previous_epoch=0, reason=FollowReason.FIRST_HEARD)]
    return hear


def followed(epoch: int, previous_epoch: int, reason: FollowReason) -> SessionFollowed:
    return SessionFollowed(epoch=epoch, previous_epoch=previous_epoch, reason=reason)


# -- one session at a time -----------------------------------------------------------------------------------------


@pytest.mark.req("GC-SESS-7")
@pytest.mark.parametrize("kind", DatagramType)
def test_the_first_session_that_is_heard_has_the_link(kind: DatagramType) -> None:
    hear = waiting()
    assert hear(100, 1.0, kind) == TAKEN
    assert hear.events() == [followed(100, 0, FollowReason.FIRST_HEARD)]
    assert hear.follower.epoch == 100
    assert hear.follower.state is (ReceiverState.CLOSED if kind is SHUTDOWN else ReceiverState.FOLLOWING)
    assert hear(100, 1.1) == ACCEPTED


@pytest.mark.req("GC-SESS-5")
@pytest.mark.parametrize("kind", DatagramType)
@pytest.mark.parametrize("ending", ["alive", "silent", "shut down"])
def test_an_older_session_never_gets_the_link(kind: DatagramType, ending: str) -> None:
    hear = following()
    if ending == "shut down":
        hear(100, 0.0, SHUTDOWN)
    now_s = 100.0 if ending == "silent" else 0.1
    assert hear(99, now_s, kind) == (STALE, False)
    assert hear(1, now_s, kind, 0) == (STALE, False)
    assert hear.follower.epoch == 100


@pytest.mark.req("GC-SESS-5")
def test_a_session_that_lost_the_link_never_gets_it_back() -> None:
    hear = following()
    assert hear(101, 1.0, STARTUP, 100) == TAKEN
    assert hear(100, 1.1) == (STALE, False)
    assert hear(100, 50.0, HEARTBEAT) == (STALE, False)
    assert hear(101, 50.1, SHUTDOWN, 100) == ACCEPTED
    assert hear(100, 99.0, STARTUP, 0) == (STALE, False)
    assert hear.follower.epoch == 101


@pytest.mark.req("GC-SESS-6")
@pytest.mark.parametrize("kind", [STARTUP, HEARTBEAT, SHUTDOWN])
def test_a_successor_gets_the_link_at_once(kind: DatagramType) -> None:
    hear = following()
    assert hear(200, 0.1, kind, 100) == TAKEN
    assert hear.events() == [followed(200, 100, FollowReason.SUCCESSION)]
    assert hear.follower.state is (ReceiverState.CLOSED if kind is SHUTDOWN else ReceiverState.FOLLOWING)


@pytest.mark.req("GC-SESS-8")
@pytest.mark.parametrize(("kind", "previous_epoch"), [(DATA, None), (STARTUP, 0), (HEARTBEAT, 99), (STARTUP, 101)])
def test_while_the_incumbent_is_alive_no_other_newcomer_gets_the_link(
    kind: DatagramType, previous_epoch: int | None
) -> None:
    hear = following()
    for now_s in (0.1, 1.0, 2.99):
        assert hear(200, now_s, kind, previous_epoch) == (CONFLICT, False)
    assert hear.follower.epoch == 100
    assert hear.follower.state is ReceiverState.FOLLOWING


@pytest.mark.req("GC-SESS-7")
@pytest.mark.parametrize("kind", DatagramType)
def test_after_a_shutdown_any_newer_session_gets_the_link(kind: DatagramType) -> None:
    hear = following()
    assert hear(100, 0.1, SHUTDOWN) == ACCEPTED
    assert hear(200, 0.2, kind) == TAKEN
    assert hear.events() == [followed(200, 100, FollowReason.AFTER_SHUTDOWN)]


@pytest.mark.req("GC-SESS-7")
@pytest.mark.parametrize("kind", DatagramType)
def test_after_silence_any_newer_session_gets_the_link(kind: DatagramType) -> None:
    hear = following()
    assert hear(200, TIMEOUT_S, kind) == TAKEN
    assert hear.events() == [
        LinkInterrupted(epoch=100, silent_s=3.0),
        followed(200, 100, FollowReason.AFTER_SILENCE),
        LinkRestored(epoch=200, silent_s=3.0),
    ]


def test_what_a_session_sends_behind_its_shutdown_is_still_its_own() -> None:
    hear = following()
    hear(100, 0.1, SHUTDOWN)
    for kind in DatagramType:
        assert hear(100, 0.2, kind) == ACCEPTED
        assert hear.follower.state is ReceiverState.CLOSED


@pytest.mark.req("GC-SESS-9")
def test_the_stored_session_is_the_followed_one() -> None:
    hear = waiting(stored_epoch=100)
    assert hear(99, 0.1) == (STALE, False)
    assert hear(100, 0.2) == ACCEPTED
    assert hear.events() == [], "the receiver says that it resumes"
    assert hear(101, 0.3) == (CONFLICT, False)


@pytest.mark.req("GC-SESS-6", "GC-SESS-7", "GC-SESS-9")
@pytest.mark.parametrize(
    ("kind", "previous_epoch", "reason"),
    [
        (STARTUP, 100, FollowReason.SUCCESSION),
        (STARTUP, 0, FollowReason.FIRST_HEARD),
        (DATA, None, FollowReason.FIRST_HEARD),
    ],
)
def test_a_newer_session_that_is_heard_before_the_stored_one_gets_the_link(
    kind: DatagramType, previous_epoch: int | None, reason: FollowReason
) -> None:
    hear = waiting(stored_epoch=100)
    assert hear(101, 0.1, kind, previous_epoch) == TAKEN
    assert hear.events() == [followed(101, 100, reason)]
    assert hear(100, 0.2) == (STALE, False)


# -- two ingresses -------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SESS-11")
def test_the_incumbent_heard_after_a_newcomer_is_a_conflict() -> None:
    hear = following()
    hear(200, 1.0)
    assert hear.events() == [], "the incumbent may be gone"
    hear(100, 1.1)
    assert hear.events() == [ConflictDetected(epoch=100, rival_epoch=200)]
    assert hear.follower.conflict


@pytest.mark.req("GC-SESS-11", "GC-LIM-3")
def test_a_conflict_lasts_until_the_rival_was_silent_for_the_timeout() -> None:
    hear = following()
    for tenth in range(1, 100):
        hear(200, tenth / 10)
        hear(100, tenth / 10)
    assert hear.events() == [ConflictDetected(epoch=100, rival_epoch=200)], "once, however long it lasts"
    assert hear(100, 12.0) == ACCEPTED
    assert hear.follower.conflict
    assert hear.follower.next_deadline_s() == 9.9 + TIMEOUT_S
    hear.follower.handle_timeout(9.9 + TIMEOUT_S)
    assert hear.events() == [ConflictCleared(rival_epoch=200)]
    assert not hear.follower.conflict


@pytest.mark.req("GC-SESS-11")
def test_the_incumbent_heard_long_after_a_newcomer_is_no_conflict() -> None:
    hear = following()
    hear(100, 2.0)
    hear(200, 2.0)
    assert hear(100, 4.99) == ACCEPTED
    assert hear.follower.conflict
    hear = following()
    hear(200, 2.0)
    hear(100, 5.0)
    assert not any(isinstance(event, ConflictDetected) for event in hear.events())


@pytest.mark.req("GC-SESS-11")
def test_a_stale_session_is_a_conflict_only_when_it_had_time_to_stop() -> None:
    """What was on its way when another took the link is no second ingress."""
    hear = following()
    hear(200, 1.0, STARTUP, 100)
    hear.events()
    assert hear(100, 1.0 + TIMEOUT_S) == (STALE, False)
    hear(200, 4.1)
    hear.events()
    assert not hear.follower.conflict
    hear(100, 4.2)
    assert hear.events() == [ConflictDetected(epoch=200, rival_epoch=100)]


@pytest.mark.req("GC-SESS-11")
def test_a_rival_that_takes_the_link_is_none_any_more() -> None:
    hear = following()
    hear(200, 1.0)
    hear(100, 1.1)
    hear.events()
    hear(100, 1.2, SHUTDOWN)
    assert hear(200, 1.3) == TAKEN
    assert hear.events() == [followed(200, 100, FollowReason.AFTER_SHUTDOWN), ConflictCleared(rival_epoch=200)]
    hear(200, 1.4)
    assert hear.events() == []


@pytest.mark.req("GC-SESS-11")
def test_a_rival_of_the_old_session_is_one_of_its_successor_too() -> None:
    hear = following()
    hear(300, 1.0)
    hear(200, 1.1, STARTUP, 100)
    assert hear.events() == [
        followed(200, 100, FollowReason.SUCCESSION),
        ConflictDetected(epoch=200, rival_epoch=300),
    ]


@pytest.mark.req("GC-LIM-3")
def test_a_rival_that_comes_and_goes_is_reported_once_in_a_timeout() -> None:
    """Here the session announces a longer timeout while the conflict is on."""
    hear = following()
    hear(200, 1.0)
    hear(100, 1.0)
    hear(100, 3.9)
    hear.follower.handle_timeout(4.0)
    assert hear.events() == [ConflictDetected(epoch=100, rival_epoch=200), ConflictCleared(rival_epoch=200)]
    hear.follower.interruption_timeout_s = 10.0
    for tenth in range(41, 109):
        hear(200, tenth / 10)
        hear(100, tenth / 10)
    assert hear.events() == []
    hear(200, 11.0)
    hear(100, 11.0)
    assert hear.events() == [ConflictDetected(epoch=100, rival_epoch=200)]


@given(st.lists(st.tuples(st.sampled_from([99, 100, 200, 300]), st.floats(0, 2.0)), max_size=40))
@settings(deadline=None)
@pytest.mark.req("GC-LIM-3", "GC-SESS-5", "GC-SESS-11")
def test_conflicts_are_raised_and_cleared_in_turn(heard: list[tuple[int, float]]) -> None:
    hear = following()
    now_s, raised_s, conflict, epoch = 0.0, None, False, 100
    for heard_epoch, pause_s in heard:
        now_s += pause_s
        hear(heard_epoch, now_s)
        for event in hear.events():
            match event:
                case ConflictDetected():
                    assert not conflict
                    assert raised_s is None or now_s - raised_s >= TIMEOUT_S * (1 - 1e-9)
                    assert event.epoch == epoch != event.rival_epoch
                    conflict, raised_s = True, now_s
                case ConflictCleared():
                    assert conflict
                    conflict = False
                case SessionFollowed():
                    assert event.previous_epoch == epoch < event.epoch
                    epoch, raised_s = event.epoch, None
                case _:
                    pass
        assert (hear.follower.conflict, hear.follower.epoch) == (conflict, epoch)


# -- silence -------------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SESS-13")
def test_silence_interrupts_the_link_and_the_next_datagram_restores_it() -> None:
    hear = following()
    hear(100, 1.0)
    assert hear.follower.next_deadline_s() == 4.0
    hear.follower.handle_timeout(3.99)
    assert hear.events() == []
    hear.follower.handle_timeout(4.0)
    assert hear.events() == [LinkInterrupted(epoch=100, silent_s=3.0)]
    assert hear.follower.next_deadline_s() is None
    hear.follower.handle_timeout(50.0)
    assert hear.events() == [], "once"
    assert hear(100, 60.0) == ACCEPTED
    assert hear.events() == [LinkRestored(epoch=100, silent_s=59.0)]


@pytest.mark.req("GC-SESS-13")
@pytest.mark.parametrize("stored_epoch", [0, 100])
def test_an_egress_that_hears_nothing_from_its_start_says_so(stored_epoch: int) -> None:
    hear = waiting(stored_epoch, now_s=10.0)
    assert hear.follower.next_deadline_s() == 13.0
    hear.follower.handle_timeout(13.0)
    assert hear.events() == [LinkInterrupted(epoch=stored_epoch, silent_s=3.0)]
    hear(100, 20.0)
    assert LinkRestored(epoch=100, silent_s=10.0) in hear.events()


@pytest.mark.req("GC-SESS-13")
def test_silence_after_a_shutdown_is_no_interruption() -> None:
    hear = following()
    hear(100, 1.0, SHUTDOWN)
    assert hear.follower.next_deadline_s() is None
    hear.follower.handle_timeout(100.0)
    assert hear.events() == []
    assert hear.follower.state is ReceiverState.CLOSED


@pytest.mark.req("GC-SESS-13")
def test_datagrams_of_others_do_not_keep_the_link_alive() -> None:
    hear = following()
    for tenth in range(1, 30):
        hear(200, tenth / 10)
        hear(99, tenth / 10)
    hear.follower.handle_timeout(3.0)
    assert hear.events() == [LinkInterrupted(epoch=100, silent_s=3.0)]


@given(st.floats(0, 1e9), st.floats(1e-3, 1e5))
@settings(deadline=None, max_examples=500)
@pytest.mark.req("GC-TIME-3")
def test_a_timer_that_is_called_at_its_deadline_does_its_work(now_s: float, timeout_s: float) -> None:
    """And is not due any more, or the owner would call it for ever. Sums and differences round differently."""
    follower = Follower(followed_epoch=0, interruption_timeout_s=timeout_s, now_s=now_s)
    follower.hear(DATA, 100, None, now_s)
    follower.hear(DATA, 200, None, now_s)
    follower.hear(DATA, 100, None, now_s)
    deadline = follower.next_deadline_s()
    assert deadline is not None
    follower.handle_timeout(deadline)
    assert follower.next_deadline_s() is None
    assert follower.state is ReceiverState.INTERRUPTED
    assert not follower.conflict
