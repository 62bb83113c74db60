"""The last ids: what is remembered, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gapconn.dedup.window import CHUNK_IDS_MAX, Chunk, Window


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


@given(st.lists(st.lists(st.integers(0, 40), max_size=10), max_size=12), st.integers(1, 30))
def test_no_first_one_is_dropped_and_no_repeat_within_the_window_passes(
    batches: list[list[int]], records_max: int
) -> None:
    window = Window(records_max=records_max, age_max_s=1e9)
    passed: list[int] = []
    for time_s, batch in enumerate(batches):
        for number, new in zip(batch, window.take([an_id(n) for n in batch]), strict=True):
            if number not in passed:
                assert new, "a first one was dropped"
            if number in passed[-records_max:]:
                assert not new, "a repeat within the window passed"
            if new:
                passed.append(number)
        window.close_chunk(time_s)
        assert len(window) <= records_max + 10


def test_ids_are_forgotten_by_age() -> None:
    window = Window(records_max=100, age_max_s=10)
    window.take([an_id(1)])
    assert window.close_chunk(0)[1] == []
    window.take([an_id(2)])
    assert window.close_chunk(10)[1] == []
    assert window.close_chunk(10.5)[1] == [0]
    assert window.take([an_id(1), an_id(2)]) == [True, False]


def test_a_large_batch_makes_several_chunks() -> None:
    window = Window(records_max=10**6, age_max_s=10)
    window.take([an_id(n) for n in range(CHUNK_IDS_MAX + 1)])
    closed, _ = window.close_chunk(0)
    assert [(chunk.number, len(chunk.ids)) for chunk in closed] == [(0, CHUNK_IDS_MAX), (1, 1)]


@given(st.lists(st.lists(st.integers(0, 40), max_size=10), max_size=10), st.integers(1, 30))
def test_a_restored_window_is_the_same(batches: list[list[int]], records_max: int) -> None:
    window = Window(records_max=records_max, age_max_s=1e9)
    chunks: dict[int, Chunk] = {}
    for time_s, batch in enumerate(batches):
        window.take([an_id(n) for n in batch])
        closed, forgotten = window.close_chunk(time_s)
        chunks |= {chunk.number: chunk for chunk in closed}
        for number in forgotten:
            del chunks[number]
    restored = Window(records_max=records_max, age_max_s=1e9)
    restored.restore(list(chunks.values())[::-1])
    ids = [an_id(n) for n in range(41)]
    assert restored.take(ids) == window.take(ids)
    assert {c.number for c in restored.close_chunk(99)[0]}.isdisjoint(chunks)
