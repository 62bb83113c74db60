"""Slabs that go round: a taker waits for a free one, in turn."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.link.slabs import SlabPool
from gapconn.protocol.wire import Slab


async def test_slabs_go_round() -> None:
    pool = SlabPool(2, 100)
    with trio.fail_after(5):
        first, second = await pool.take(), await pool.take()
        assert first is not second
        assert len(first.flat) == 100
        pool.give(first)
        assert await pool.take() is first


async def test_a_slab_that_is_known_to_be_free() -> None:
    pool = SlabPool(2, 100)
    first = pool.take_now()
    second = await pool.take()
    assert first is not second
    pool.give(first)
    assert pool.take_now() is first


async def test_a_taker_waits_until_one_is_given() -> None:
    pool = SlabPool(1, 100)
    slab = await pool.take()
    taken: list[tuple[int, Slab]] = []

    async def take(number: int) -> None:
        taken.append((number, await pool.take()))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(take, 2)
            await wait_all_tasks_blocked()
            assert not taken
            pool.give(slab)
            await wait_all_tasks_blocked()
            assert taken == [(1, slab)], "one slab is for one taker, and for the first"
            pool.give(slab)
    assert taken == [(1, slab), (2, slab)]


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    pool = SlabPool(1, 100)
    slab = await pool.take()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.take)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        pool.give(slab)
        assert await pool.take() is slab
