"""When a pair is taken out and when it may work again: the table, and runs of checks through it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.monitor.states import PAIR_TABLE, PairEffect, PairInput, PairMachine, PairState

U, W, S, O, R = PairState  # noqa: E741 - as the rows of a table
GOOD, BAD, CONFIRMED, PROVEN, FOUND = PairInput

TABLE = {
    #          unknown  working  suspect  out  recovering
    GOOD:      (W,      W,       W,       R,   R),
    BAD:       (U,      S,       S,       O,   O),
    CONFIRMED: (O,      O,       O,       O,   O),
    PROVEN:    (W,      W,       W,       R,   W),
    FOUND:     (O,      W,       S,       O,   R),
}  # fmt: skip


def test_the_table_is_complete() -> None:
    assert set(PAIR_TABLE) == set(product(PairState, PairInput))


@pytest.mark.parametrize("what", PairInput)
@pytest.mark.parametrize("state", PairState)
def test_a_step(state: PairState, what: PairInput) -> None:
    effect, after = PAIR_TABLE[state, what]
    assert after is TABLE[what][list(PairState).index(state)]
    takes_out = state in (U, W, S) and after is O and what is CONFIRMED
    lets_work = state is R and after is W
    assert (effect is PairEffect.TAKE_OUT) == takes_out
    assert (effect is PairEffect.LET_WORK) == lets_work


def machine(state: PairState = PairState.WORKING, failures: int = 3) -> PairMachine:
    return PairMachine(failures=failures, recover_after_s=10, hold_max_s=35, state=state)


def run(subject: PairMachine, checks: str, start_s: float = 0.0) -> list[PairEffect]:
    """A check each second: `+` is good, `-` bad."""
    return [subject.check(start_s + n, good=check == "+") for n, check in enumerate(checks)]


def test_single_failures_are_nothing() -> None:
    subject = machine()
    assert set(run(subject, "+--+--+-+--+")) == {PairEffect.NOTHING}
    assert subject.state is PairState.WORKING


def test_as_many_in_a_row_as_configured_take_it_out_once() -> None:
    subject = machine()
    assert run(subject, "+-----") == [PairEffect.NOTHING] * 3 + [PairEffect.TAKE_OUT] + [PairEffect.NOTHING] * 2
    assert (subject.state, subject.wants_hold, subject.times_out) == (PairState.OUT, True, 1)


def test_it_works_again_when_it_was_healthy_for_long_enough() -> None:
    subject = machine(PairState.OUT)
    assert run(subject, "+" * 10) == [PairEffect.NOTHING] * 10
    assert subject.wants_hold is True
    assert run(subject, "+", 10) == [PairEffect.LET_WORK]
    assert subject.wants_hold is False


def test_a_failure_while_it_recovers_begins_the_time_again() -> None:
    subject = machine(PairState.OUT)
    run(subject, "+++++++++-")
    assert subject.state is PairState.OUT
    assert PairEffect.LET_WORK not in run(subject, "+" * 10, 10)
    assert run(subject, "+", 20) == [PairEffect.LET_WORK]


def test_each_time_out_doubles_the_time_up_to_the_limit_and_long_work_ends_that() -> None:
    subject, now_s, holds = machine(), 0.0, []
    for _ in range(4):
        while subject.state is not PairState.OUT:
            subject.check(now_s, good=False)
        began_s = now_s
        while subject.check(now_s, good=True) is not PairEffect.LET_WORK:
            now_s += 1
        holds.append(now_s - began_s)
    assert holds == [10, 20, 35, 35]
    run(subject, "+" * 37, now_s)
    assert (subject.times_out, subject.hold_s) == (0, 10)


def test_a_monitor_that_has_just_started_changes_nothing_before_it_can_judge() -> None:
    subject = machine(PairState.UNKNOWN)
    run(subject, "--")
    assert (subject.state, subject.wants_hold) == (PairState.UNKNOWN, None)
    run(subject, "+")
    assert (subject.state, subject.wants_hold) == (PairState.WORKING, False)


def test_a_monitor_that_finds_its_own_hold_goes_on_with_it() -> None:
    subject = machine(PairState.UNKNOWN)
    subject.found_held()
    assert run(subject, "+" * 11) == [PairEffect.NOTHING] * 10 + [PairEffect.LET_WORK]


@given(st.text("+-", max_size=200), st.integers(1, 4))
def test_effects_alternate_whatever_comes(checks: str, failures: int) -> None:
    subject = machine(failures=failures)
    effects = [effect for effect in run(subject, checks) if effect is not PairEffect.NOTHING]
    assert all(effect is (PairEffect.LET_WORK if n % 2 else PairEffect.TAKE_OUT) for n, effect in enumerate(effects))
    assert bool(subject.wants_hold) == (len(effects) % 2 == 1)
    assert (len(effects) > 0) == ("-" * failures in checks)
