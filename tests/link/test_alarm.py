"""Sleeping until a time, on a timer of the system's or on Trio's. How late it wakes up is not for a test to say."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

from gapconn.link.alarm import Alarm


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    alarm = Alarm()
    yield alarm
    alarm.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Alarm:
    """As on a system without such a timer."""
    monkeypatch.setattr("gapconn.link.alarm._timer", lambda: -1)
    alarm = Alarm()
    assert not alarm.precise
    return alarm


async def test_it_never_wakes_up_early(alarm: Alarm) -> None:
    if not alarm.precise:
        pytest.skip("this system has no timerfd")
    with trio.fail_after(60):
        for microseconds in (0, 1, 10, 300, 700, 1000, 1700, 5000):
            until_s = trio.current_time() + microseconds / 1e6
            await alarm.sleep_until(until_s)
            assert trio.current_time() >= until_s


async def test_an_alarm_that_was_given_up_does_not_end_the_next_sleep(alarm: Alarm) -> None:
    with trio.fail_after(60):
        with trio.move_on_after(0) as gave_up:
            await alarm.sleep_until(trio.current_time() + 0.02)
        assert gave_up.cancelled_caught
        until_s = trio.current_time() + 0.05
        await alarm.sleep_until(until_s)
        assert trio.current_time() >= until_s


@pytest.mark.parametrize("ago_s", [0.0, 5.0])
async def test_a_time_that_has_passed_is_a_checkpoint(alarm: Alarm, ago_s: float) -> None:
    with assert_checkpoints():
        await alarm.sleep_until(trio.current_time() - ago_s)


async def test_a_long_sleep_and_a_system_without_timers(plain: Alarm, autojump_clock: MockClock) -> None:
    for sleep_s in (0.0003, 30.0):
        until_s = trio.current_time() + sleep_s
        await plain.sleep_until(until_s)
        assert trio.current_time() == pytest.approx(until_s)
    plain.close()


async def test_it_gives_back_what_it_took() -> None:
    alarm = Alarm()
    if not alarm.precise:
        pytest.skip("this system has no timerfd")
    before = len(os.listdir("/proc/self/fd"))
    alarm.close()
    alarm.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
