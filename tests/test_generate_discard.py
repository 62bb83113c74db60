"""Generated records prove themselves, and the discard sink finds each way in which they can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import trio

from gapconn.plugins import Context
from gapconn.record import NO_POSITION, Batch, Chunk, ChunkKind, Records, first_position
from gapconn.selfcheck import HEAD_BYTES, STREAM, Pattern
from gapconn.sinks import Delivery
from gapconn.sinks.discard import DiscardConfig, DiscardSink
from gapconn.sources.generate import GenerateConfig, GenerateSource
from gapconn.testing.pipes import Pipe, RecordingOutlet, ScriptedInlet, make_context
from gapconn.units import BitsPerSecond, Bytes

EPOCH = 7


def generated(numbers: list[int], *, size_bytes: int = 64, epoch: int = EPOCH) -> Records:
    pattern = Pattern(size_bytes=size_bytes, seed=epoch)
    positions = [first_position(epoch) + number for number in numbers]
    return Records(stream=STREAM, positions=positions, values=[pattern.values(n, 1)[0] for n in numbers])


async def discard(*parts: Records | Chunk | Delivery, epoch: int = EPOCH) -> Context:
    """The context of a discard sink after it took `parts`, a batch each."""
    context = make_context(epoch=0)
    inlet = ScriptedInlet(script=[])
    inlet.script = [
        part if isinstance(part, Delivery) else inlet.delivery(Batch(parts=[part]), message=i, epoch=epoch)
        for i, part in enumerate(parts)
    ]
    with trio.fail_after(5):
        await DiscardSink(DiscardConfig(), context).run(inlet)
    assert inlet.accepted == list(range(len(parts)))
    return context


@pytest.mark.parametrize("size_bytes", [HEAD_BYTES, HEAD_BYTES + 1, 1024, 64 * 1024, 1 << 21])
def test_a_pattern_matches_its_own_records_only(size_bytes: int) -> None:
    pattern = Pattern(size_bytes=size_bytes, seed=EPOCH)
    values = pattern.values(1000, 5)
    assert {len(value or b"") for value in values} == {size_bytes}
    assert len(set(values)) == 5
    assert pattern.matches(1000, values)
    assert not pattern.matches(1001, values)
    assert not Pattern(size_bytes=size_bytes, seed=EPOCH + 1).matches(1000, values)


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16, 40, 63])
def test_a_pattern_notices_every_flipped_bit(place: int) -> None:
    pattern = Pattern(size_bytes=64, seed=EPOCH)
    values = pattern.values(0, 3)
    damaged = bytearray(values[1] or b"")
    damaged[place] ^= 1
    assert not pattern.matches(0, [values[0], bytes(damaged), values[2]])


@pytest.mark.parametrize("value", [None, b"", b"short", "the right record and one byte"])
def test_a_pattern_notices_a_wrong_length(value: bytes | str | None) -> None:
    pattern = Pattern(size_bytes=64, seed=EPOCH)
    (right,) = pattern.values(0, 1)
    assert right is not None
    assert not pattern.matches(0, [right + b"!" if isinstance(value, str) else value])


def test_a_record_cannot_be_smaller_than_its_head() -> None:
    with pytest.raises(ValueError, match="size_bytes"):
        GenerateConfig(size_bytes=Bytes(HEAD_BYTES - 1))


@pytest.mark.parametrize("size_bytes", [16, 1000, 100_000])
async def test_what_is_generated_is_verified(size_bytes: int) -> None:
    count = 300
    pipe = Pipe(epoch=EPOCH)
    context = make_context(epoch=0)
    source = GenerateSource(GenerateConfig(size_bytes=Bytes(size_bytes), count=count), make_context(epoch=EPOCH))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(DiscardSink(DiscardConfig(), context).run, pipe)
            await source.run(pipe)
            pipe.close()
    assert context.status == {
        "received": count,
        "bytes": count * size_bytes,
        "verified": count,
        "first": 0,
        "last": count - 1,
        "missing": 0,
        "damaged": 0,
        "duplicates": 0,
        "reordered": 0,
    }


async def test_generated_records_are_chained_from_the_first_one_of_the_session() -> None:
    outlet = RecordingOutlet(batch_bytes=4096)
    with trio.fail_after(5):
        await GenerateSource(GenerateConfig(count=20), make_context(epoch=EPOCH)).run(outlet)
    runs = [part for batch in outlet.batches for part in batch.parts if isinstance(part, Records)]
    assert len(runs) > 2
    assert [run.previous for run in runs] == [NO_POSITION, *(run.positions[-1] for run in runs[:-1])]


async def test_lost_messages_show_as_missing_records() -> None:
    pipe = Pipe(epoch=EPOCH, drop=lambda number: number in (2, 3))
    context = make_context(epoch=0)
    per_batch = pipe.batch_bytes // (1024 + 14)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(DiscardSink(DiscardConfig(), context).run, pipe)
            await GenerateSource(GenerateConfig(count=5 * per_batch), make_context(epoch=EPOCH)).run(pipe)
            pipe.close()
    assert context.status["missing"] == 2 * per_batch
    assert context.status["verified"] == context.status["received"] == 3 * per_batch
    assert context.counters["records_missing"] == 2 * per_batch


async def test_batches_stay_near_the_size_that_the_outlet_wants() -> None:
    outlet = RecordingOutlet(batch_bytes=10_000)
    await GenerateSource(GenerateConfig(count=100), make_context()).run(outlet)
    runs = [part for batch in outlet.batches for part in batch.parts if isinstance(part, Records)]
    sizes = [sum(len(value or b"") for value in run.values) for run in runs]
    assert max(sizes) <= 10_000
    assert sum(sizes) == 100 * 1024


async def test_a_rate_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    outlet = RecordingOutlet()
    rate = BitsPerSecond(8 * 1024 * 100)  # 100 records a second
    started = trio.current_time()
    with trio.fail_after(60):
        await GenerateSource(GenerateConfig(count=1000, rate=rate), make_context()).run(outlet)
    assert trio.current_time() - started == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([[0, 1], [2, 3]], {"first": 0, "last": 3, "verified": 4}, id="in-order"),
        pytest.param([[5, 6], [7]], {"first": 5, "last": 7, "missing": 0}, id="joined-late"),
        pytest.param([[0, 1], [4, 5]], {"missing": 2, "last": 5}, id="hole-between"),
        pytest.param([[0, 1, 4, 5]], {"missing": 2, "last": 5, "verified": 4}, id="hole-inside"),
        pytest.param([[0, 1], [1, 2]], {"duplicates": 1, "last": 2, "missing": 0}, id="overlap"),
        pytest.param([[0, 1], [0, 1]], {"duplicates": 2, "last": 1}, id="twice"),
        pytest.param([[0, 1], [4], [2, 3]], {"missing": 0, "reordered": 2, "duplicates": 0}, id="swapped"),
        pytest.param([[0], [9], [4], [4]], {"missing": 7, "reordered": 1, "duplicates": 1}, id="late-and-twice"),
        pytest.param([[0], [5], [3, 4, 5, 6]], {"missing": 2, "reordered": 2, "duplicates": 1, "last": 6}, id="mixed"),
    ],
)
async def test_order_gaps_and_duplicates_are_told_apart(runs: list[list[int]], expected: dict[str, Any]) -> None:
    context = await discard(*(generated(numbers) for numbers in runs))
    assert {name: context.status[name] for name in expected} == expected
    assert context.status["damaged"] == 0


async def test_damage_is_counted_and_located() -> None:
    records = generated([0, 1, 2, 3])
    records.values[2] = b"x" * 64
    with structlog.testing.capture_logs() as logs:
        context = await discard(records)
    assert (context.status["damaged"], context.status["verified"]) == (1, 3)
    assert context.counters["records_damaged"] == 1
    (entry,) = [entry for entry in logs if entry["event"] == "generated_record_damaged"]
    assert (entry["log_level"], entry["epoch"], entry["message"], entry["number"]) == ("error", EPOCH, 0, 2)


async def test_a_record_of_another_session_is_damage() -> None:
    context = await discard(generated([0, 1], epoch=EPOCH + 1))
    assert context.status["damaged"] == 2


async def test_positions_before_the_first_of_the_session_are_damage() -> None:
    records = generated([0, 1])
    records.positions = [first_position(EPOCH) - 1, -1]
    context = await discard(records)
    assert (context.status["damaged"], context.status["verified"]) == (2, 0)


async def test_a_new_session_starts_at_zero_again() -> None:
    inlet = ScriptedInlet(script=[])
    script = [
        (generated([7, 8]), 7),
        (generated([0, 1], epoch=9), 9),
        (generated([3], epoch=12), 12),
    ]
    inlet.script = [
        inlet.delivery(Batch(parts=[part]), message=i, epoch=epoch) for i, (part, epoch) in enumerate(script)
    ]
    context = make_context()
    await DiscardSink(DiscardConfig(), context).run(inlet)
    assert context.status["verified"] == 5
    assert context.status["missing"] == 3  # 0 to 2 of the last session
    assert context.status["duplicates"] == 0


async def test_other_data_is_only_counted() -> None:
    context = await discard(
        Records(stream="orders", positions=[4, 9], values=[b"abc", None]),
        Chunk(stream="s", kind=ChunkKind.DATA, position=0, data=memoryview(b"12345")),
    )
    assert (context.status["received"], context.status["bytes"]) == (3, 8)
    assert context.status["verified"] == context.status["missing"] == context.status["damaged"] == 0


async def test_the_memory_for_holes_is_bounded() -> None:
    context = make_context()
    sink = DiscardSink(DiscardConfig(), context)
    inlet = ScriptedInlet(script=[Batch(parts=[generated(list(range(0, 50_000, 2)), epoch=1)])])
    await sink.run(inlet)
    assert context.status["missing"] == 24_999
    assert len(sink._numbers.holes) == 10_000
