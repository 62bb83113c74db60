"""The repeat buffer on disk: a ring of what was sent, whole after a kill, never larger than it may be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gapconn.errors import LinkError
from gapconn.store.repeat_buffer import NOTHING_NEEDED, RepeatBuffer, Sent, Stored
from gapconn.store.segments import Place
from tests.store.test_spool import file_size_limit

MIB = 1 << 20
EPOCH = 9
BEGIN = Place(1, 0, 0)


def opened(directory: Path, **values: Any) -> RepeatBuffer:
    return RepeatBuffer(directory, **{"link": "orders", "link_id": 7, "max_bytes": 64 * MIB, **values})


def message(number: int, size_bytes: int = 1000, epoch: int = EPOCH) -> tuple[Sent, bytes]:
    return Sent(epoch, number, 1000.5 + number, float(number)), number.to_bytes(8, "big").ljust(size_bytes, b".")


def append(
    buffer: RepeatBuffer, numbers: range, *, size_bytes: int = 1000, needed_from: int = 0, epoch: int = EPOCH
) -> Stored:
    messages = [message(number, size_bytes, epoch) for number in numbers]
    stored = buffer.append(messages, needed_from=needed_from)
    assert stored.error or stored.kept == len(messages)
    return stored


def read(buffer: RepeatBuffer, place: Place = BEGIN, *, bytes_max: int = 50_000) -> list[int]:
    """The numbers of what is there from `place` on, each compared with what was written."""
    numbers = []
    while place != buffer.end:
        kept, behind = buffer.read(place, bytes_max)
        assert behind.serial > place.serial or not kept
        place = behind
        for each in kept:
            assert (each.sent, bytes(each.message)) == message(each.sent.number, len(each.message), each.sent.epoch)
            numbers.append(each.sent.number)
        if not kept:
            break
    return numbers


def test_messages_come_back_as_they_were_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as buffer:
        for first in range(0, 400, 40):
            append(buffer, range(first, first + 40), size_bytes=20_000)
        assert read(buffer) == list(range(400))
        assert buffer.messages == 400
        middle = buffer.read(BEGIN, 1_000_000)[1]
        assert read(buffer, middle) == list(range(middle.serial, 400))
    with opened(tmp_path) as buffer:
        assert read(buffer) == list(range(400))
        append(buffer, range(400, 410))
        assert read(buffer) == list(range(410))


def test_the_oldest_go_when_it_is_full_and_those_that_were_needed_are_counted(tmp_path: Path) -> None:
    dropped = needed = 0
    with opened(tmp_path, max_bytes=MIB) as buffer:
        for first in range(0, 500, 10):
            stored = append(buffer, range(first, first + 10), size_bytes=20_000, needed_from=90)
            dropped += stored.dropped
            needed += stored.dropped_needed
            assert buffer.disk_bytes <= MIB
        assert dropped == 500 - buffer.messages
        assert needed == dropped - 90
        assert MIB // 20_000 - 8 < buffer.messages <= MIB // 20_000
        assert read(buffer) == list(range(dropped, 500)), "a reader goes on with what there still is"
    with opened(tmp_path, max_bytes=MIB) as buffer:
        assert read(buffer, Place(1, 0, dropped)) == list(range(dropped, 500))
    with opened(tmp_path, max_bytes=MIB // 4) as buffer:
        assert buffer.disk_bytes <= MIB // 4, "it was made smaller"


def test_what_others_need_of_the_disk_stays_free(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    with opened(tmp_path, keep_free_bytes=space.f_blocks * space.f_frsize) as buffer:
        stored = append(buffer, range(3))
        assert stored.kept == 0
        assert "keep_free_bytes" in stored.error
        assert buffer.disk_bytes == 0


@pytest.mark.parametrize("limit", [20, 1_000, 50_000, 200_001])
def test_a_disk_that_fails_costs_the_message_and_nothing_else(tmp_path: Path, limit: int) -> None:
    with opened(tmp_path) as buffer:
        with file_size_limit(limit):
            failed = append(buffer, range(20), size_bytes=30_000)
            assert "File too large" in failed.error
        append(buffer, range(20, 30))
        assert read(buffer) == [*range(failed.kept), *range(20, 30)]


def test_messages_are_found_by_session_and_number(tmp_path: Path) -> None:
    def found(epoch: int, first: int, last: int) -> list[int]:
        return [kept.sent.number for kept in buffer.find(epoch, first, last) if kept.sent.epoch == epoch]

    with opened(tmp_path, max_bytes=4 * MIB) as buffer:
        for epoch, count in ((5, 60), (EPOCH, 300), (2**63, 30)):
            for first in range(0, count, 30):
                append(buffer, range(first, first + 30), size_bytes=20_000, epoch=epoch)
    with opened(tmp_path, max_bytes=4 * MIB) as buffer:
        oldest = 390 - buffer.messages - 60
        assert 100 < oldest < 250
        assert found(5, 0, 59) == []
        assert found(EPOCH, 0, 1000) == list(range(oldest, 300))
        assert found(EPOCH, 255, 257) == [255, 256, 257]
        assert found(EPOCH, 299, 2**64 - 1) == [299]
        assert found(2**63, 0, 29) == list(range(30))
        assert found(7, 0, 29) == []


def test_a_damaged_message_is_left_out(tmp_path: Path) -> None:
    with opened(tmp_path) as buffer:
        append(buffer, range(10), size_bytes=20_000)
        (segment,) = buffer.path.glob("*.segment")
    content = bytearray(segment.read_bytes())
    content[content.index(message(4, 20_000)[1]) + 500] ^= 1
    segment.write_bytes(content)
    with opened(tmp_path) as buffer:
        assert read(buffer) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert [kept.sent.number for kept in buffer.find(EPOCH, 3, 5)] == [3, 5]


def test_what_was_still_to_be_repeated_is_known_to_the_next_process(tmp_path: Path) -> None:
    with opened(tmp_path) as buffer:
        assert buffer.left_before == 0
        append(buffer, range(20))
    with opened(tmp_path) as buffer:
        assert buffer.left_before == 0, "nobody has said that something is needed"
        for needed_from in (3, 13):
            buffer.note_needed(needed_from)
    with opened(tmp_path) as buffer:
        assert buffer.left_before == 7
        append(buffer, range(20, 25))
        buffer.note_needed(NOTHING_NEEDED)
    with opened(tmp_path) as buffer:
        assert buffer.left_before == 0
        buffer.note_needed(0)
        for first in range(25, 500, 25):
            append(buffer, range(first, first + 25), size_bytes=20_000)
    with opened(tmp_path, max_bytes=MIB) as buffer:
        assert buffer.left_before == buffer.messages < 100, "what is not there any more cannot be asked for"
        (buffer.path / "needed").write_bytes(b"x" * 24)
    with opened(tmp_path, max_bytes=MIB) as buffer:
        assert buffer.left_before == 0


def test_a_buffer_of_another_link_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as buffer:
        append(buffer, range(1))
        with pytest.raises(LinkError, match="another ingress of link 'orders'"):
            opened(tmp_path)
    with pytest.raises(LinkError, match="belongs to the ingress of link id 7, and not to link id 8"):
        opened(tmp_path, link_id=8)
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError, match=r"the repeat buffer cannot be used: .*repeat_buffer\.directory"):
        opened(tmp_path / "file")


WRITE = """
import sys
from itertools import count
from pathlib import Path
from tests.store.test_repeat_buffer import append, opened
buffer = opened(Path(sys.argv[1]), max_bytes=4 << 20)
for first in count(buffer.end.serial, 7):
    append(buffer, range(first, first + 7), size_bytes=20_000)
    print(first + 7, flush=True)
"""


def test_a_killed_process_has_kept_what_it_wrote(tmp_path: Path) -> None:
    chance = random.Random(5)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(chance.randrange(3, 60))]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split("\n")[:-1]
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        with opened(tmp_path, max_bytes=4 * MIB) as buffer:
            oldest = buffer.end.serial - buffer.messages
            assert read(buffer, Place(1, 0, oldest)) == list(range(oldest, buffer.end.serial))
            assert buffer.end.serial >= int(said[-1])
            assert buffer.disk_bytes <= 4 * MIB
