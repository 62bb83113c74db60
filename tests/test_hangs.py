"""An egress that answers and does not work: what counts as standing still, and what does not."""

from __future__ import annotations

from gapconn.hangs import RECEIVER_HANGS_S, SINK_HANGS_S, HangWatch


def sink(
    watch: HangWatch, until_s: float, *, accepted: bool = False, tries_every_s: float = 0, idle: bool = False
) -> None:
    for second in range(int(until_s) + 1):
        tries = int(second / tries_every_s) if tries_every_s else 0
        watch.saw_sink(second, second if accepted else 0, tries, idle=idle)


def test_a_sink_that_accepts_works() -> None:
    watch = HangWatch(0.0)
    sink(watch, 100, accepted=True)
    assert watch.found(100) == {}
    assert watch.sink_stalled_s(100) == 0


def test_a_sink_for_which_nothing_waits_is_idle() -> None:
    watch = HangWatch(0.0)
    sink(watch, 100, idle=True)
    assert (watch.found(100), watch.sink_stalled_s(100)) == ({}, 0)


def test_a_sink_that_tries_again_is_only_stalled() -> None:
    watch = HangWatch(0.0)
    sink(watch, 200, tries_every_s=15)
    assert watch.found(200) == {}
    assert watch.sink_stalled_s(200) == 200


def test_a_sink_that_neither_accepts_nor_tries_hangs() -> None:
    watch = HangWatch(0.0)
    sink(watch, SINK_HANGS_S + 2)
    assert list(watch.found(SINK_HANGS_S + 2)) == ["sink_hangs"]
    watch.saw_sink(SINK_HANGS_S + 3, 1, 0, idle=False)
    assert watch.found(SINK_HANGS_S + 3) == {}


def receiver(watch: HangWatch, until_s: float, *, taken: bool, waiting: bool) -> None:
    for step in range(int(until_s * 50) + 1):
        watch.saw_receiver(step / 50, step if taken else 0, lambda: waiting)


def test_a_receiver_hangs_when_the_kernel_holds_what_it_does_not_take() -> None:
    for taken, waiting, hangs in ((True, True, False), (False, False, False), (False, True, True)):
        watch = HangWatch(0.0)
        receiver(watch, RECEIVER_HANGS_S + 1, taken=taken, waiting=waiting)
        assert ("receiver_hangs" in watch.found(RECEIVER_HANGS_S + 1)) == hangs


def test_a_receiver_that_goes_on_is_well_again() -> None:
    watch = HangWatch(0.0)
    receiver(watch, 10, taken=False, waiting=True)
    watch.saw_receiver(10.1, 1, lambda: True)
    assert watch.found(10.1) == {}
