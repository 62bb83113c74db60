"""The spool on disk: what was written is read back in order, whatever a kill or a bad disk left of it."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from gapconn.errors import LinkError
from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import Standing
from gapconn.protocol.registry import Compression
from gapconn.store.spool import Damage, Place, Spool, Spooled, Trouble

MIB = 1 << 20


def entry(number: int, *, size_bytes: int = 1000, epoch: int = 7) -> Spooled:
    """A message whose body begins with its number; every fifth one is a repair."""
    spans = (Span("orders", 3, number, 2**60, 4, "", True), Span("ä", 0, 5, 6, 0, "deleted"))
    return Spooled(
        message=MessageDelivered(
            epoch=epoch,
            number=number,
            first_record=10 * number,
            record_count=10,
            runs=[Run("orders", 3, 10 * number - 1, 10 * number, 10 * number + 9, 10, 0, False, 0)],
            already_delivered={("orders", 3): 10 * number + 2},
            positions={("orders", 3): Standing(epoch, 0, 10 * number + 9), ("ä", 2**40): Standing(2**64 - 1, -1, -1)},
            body=memoryview(number.to_bytes(8, "big").ljust(size_bytes, b".")),
            compression=Compression.ZSTD if number % 2 else Compression.NONE,
            plain_bytes=1 << 20 if number % 2 else 0,
            spans=spans if number % 5 == 4 else (),
            claimed={("orders", 3): ((number, 100), (200, 2**60)), ("ä", 0): ()} if number % 5 == 4 else {},
        ),
        lost_before=number % 3,
        arrived_s=1_000_000.5 + number,
    )


def opened(directory: Path, **values: Any) -> Spool:
    return Spool(directory, **{"link": "orders", "link_id": 7, "max_bytes": 1 << 30, **values})


def appended(spool: Spool, *numbers: int, size_bytes: int = 1000) -> list[Place]:
    """Append these; all of them must be taken."""
    result = spool.append([entry(number, size_bytes=size_bytes) for number in numbers])
    assert (result.trouble, result.error) == (None, "")
    assert len(result.ends) == len(numbers)
    return result.ends


def read_all(spool: Spool, place: Place | None = None, bytes_max: int = 10_000) -> list[Spooled | Damage]:
    """Everything from `place` (else the cursor) on, a little at a time."""
    place = spool.cursor if place is None else place
    items: list[Spooled | Damage] = []
    while place.serial < spool.end.serial:
        read = spool.read(place, bytes_max)
        assert read.place.serial > place.serial
        items += [item for item, _ in read.items]
        place = read.place
    return items


def numbers_of(items: list[Spooled | Damage]) -> list[int]:
    """The numbers of whole entries, each compared with what was written."""
    found = []
    for item in items:
        if isinstance(item, Spooled):
            assert item == entry(item.message.number, size_bytes=len(item.message.body))
            found.append(item.message.number)
    return found


def segments(spool: Spool) -> list[Path]:
    return sorted(spool.path.glob("*.segment"))


# What goes in comes out


@pytest.mark.req("GC-DLV-20")
def test_entries_come_back_as_they_were_in_order_over_many_segments(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        for first in range(0, 300, 20):
            appended(spool, *range(first, first + 20), size_bytes=30_000)
        assert len(segments(spool)) > 5
        assert numbers_of(read_all(spool, bytes_max=1)) == list(range(300))
        assert numbers_of(read_all(spool, bytes_max=MIB)) == list(range(300))
        assert spool.disk_bytes == sum(path.stat().st_size for path in segments(spool))
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        assert spool.cut_bytes == 0
        assert numbers_of(read_all(spool)) == list(range(300))
        appended(spool, 300)
        assert numbers_of(read_all(spool)) == list(range(301))


def test_entries_of_any_size(tmp_path: Path) -> None:
    sizes = [8, 8, 100_000, 9, 5 * MIB, 8, 3 * MIB]
    with opened(tmp_path, max_bytes=64 * MIB) as spool:
        for number, size in enumerate(sizes):
            appended(spool, number, size_bytes=size)
        items = read_all(spool)
        assert numbers_of(items) == list(range(len(sizes)))
        assert [len(item.message.body) for item in items if isinstance(item, Spooled)] == sizes


@pytest.mark.req("GC-DLV-20")
def test_what_the_sink_has_is_not_read_again_and_its_space_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        ends = appended(spool, *range(300), size_bytes=30_000)
        before = len(segments(spool))
        spool.commit(ends[199])
        assert len(segments(spool)) < before / 2
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        assert spool.cursor == ends[199]
        assert numbers_of(read_all(spool)) == list(range(200, 300))
        spool.commit(ends[-1])
        assert segments(spool) == []
        assert spool.disk_bytes == 0
        assert read_all(spool) == []
        appended(spool, 300, 301)
        assert numbers_of(read_all(spool)) == [300, 301]
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        assert spool.cursor.serial == 300
        assert numbers_of(read_all(spool)) == [300, 301]


def test_a_spool_that_is_empty_stays_empty(tmp_path: Path) -> None:
    for _ in range(3):
        with opened(tmp_path) as spool:
            assert (spool.cursor.serial, spool.end.serial, spool.disk_bytes) == (0, 0, 0)
            spool.commit(spool.cursor)
            assert read_all(spool) == []


@pytest.mark.req("GC-DLV-19")
def test_messages_beyond_the_stored_progress_are_found(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        appended(spool, *range(200), size_bytes=30_000)
        spool.append([entry(number, epoch=8) for number in range(5, 10)])
        assert len(segments(spool)) > 4
        for since, expected in (
            ((7, 150), [*range(150, 200), *range(5, 10)]),
            ((0, 0), [*range(200), *range(5, 10)]),
            ((8, 7), [7, 8, 9]),
            ((9, 0), []),
        ):
            found = list(spool.described_since(*since))
            assert [message.number for message in found] == expected
            assert all(
                message == attrs.evolve(entry(message.number, epoch=message.epoch).message, body=memoryview(b""))
                for message in found
            )


# What a kill or a power cut leaves


@pytest.mark.req("GC-DLV-20")
def test_an_end_that_is_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as spool:
        ends = appended(spool, 0, 1, 2, size_bytes=40)
        (path,) = segments(spool)
    whole = path.read_bytes()
    assert len(whole) == ends[-1].offset
    for length in range(len(whole)):
        directory = tmp_path / str(length)
        (directory / "orders.spool").mkdir(parents=True)
        torn = directory / "orders.spool" / path.name
        torn.write_bytes(whole[:length])
        expected = sum(end.offset <= length for end in ends)
        with opened(directory) as spool:
            assert numbers_of(read_all(spool)) == list(range(expected))
            assert all(isinstance(item, Spooled) for item in read_all(spool))
            kept = ends[expected - 1].offset if expected else min(length, 40)
            assert spool.cut_bytes == length - kept, "what was no whole entry is told"
            appended(spool, *range(expected, 5))
        with opened(directory) as spool:
            assert spool.cut_bytes == 0
            assert numbers_of(read_all(spool)) == list(range(5)), "and it goes on behind the cut"


def test_an_end_with_bytes_that_never_reached_the_disk_is_cut(tmp_path: Path) -> None:
    """After a power cut the file may have its length, and zeros where the data was to be."""
    with opened(tmp_path) as spool:
        ends = appended(spool, 0, 1, 2)
        (path,) = segments(spool)
    for begin in (ends[1].offset, ends[1].offset + 10, ends[2].offset - 500, ends[2].offset - 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:begin] + bytes(ends[2].offset - begin + 4096))
        with opened(tmp_path) as spool:
            assert numbers_of(read_all(spool)) == [0, 1]
            assert spool.cut_bytes == 4096 + ends[2].offset - ends[1].offset
        path.write_bytes(whole)


# Damage


def damaged(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.req("GC-DLV-21")
def test_a_damaged_entry_is_skipped_and_told_with_its_place(tmp_path: Path) -> None:
    """One byte is changed, at every place of the entry."""
    with opened(tmp_path) as spool:
        ends = appended(spool, *range(5), size_bytes=60)
        (path,) = segments(spool)
        begin, behind = ends[1].offset, ends[2].offset
        whole = path.read_bytes()
        bodies = 0
        for offset in range(begin, behind):
            path.write_bytes(whole)
            damaged(path, offset, bytes([whole[offset] ^ 0x10]))
            items = read_all(spool)
            assert numbers_of(items) == [0, 1, 3, 4]
            (damage,) = [item for item in items if isinstance(item, Damage)]
            assert items[2] is damage, "in its place"
            assert (damage.serials, damage.segment, damage.offset) == (1, path.name, begin)
            if damage.known is not None:
                bodies += 1
                assert damage.known.message.runs == entry(2).message.runs, "which records these were"
        assert bodies == 60 + 8, "in the body, or its check"


@pytest.mark.req("GC-DLV-21")
def test_damage_of_all_kinds(tmp_path: Path) -> None:
    chance = random.Random(4)
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        ends = appended(spool, *range(200), size_bytes=30_000)
        paths = segments(spool)
        # A stretch of garbage over several entries; a stretch over the border of two segments; a whole segment.
        places = [0, *(end.offset for end in ends)]
        first = [index for index, end in enumerate(ends) if end.segment == 1]
        damaged(paths[0], places[4] + 100, chance.randbytes(3 * 30_000))
        damaged(paths[0], ends[first[-1]].offset - 10_000, chance.randbytes(10_000))
        damaged(paths[1], 0, chance.randbytes(30_000))
        paths[3].unlink()
        gone = {index for index, end in enumerate(ends) if end.segment == 4}
        expected = set(range(200)) - {4, 5, 6, first[-1], first[-1] + 1} - gone
        items = read_all(spool)
        assert numbers_of(items) == sorted(expected)
        assert sum(item.serials for item in items if isinstance(item, Damage)) == 200 - len(expected)
        assert {item.segment for item in items if isinstance(item, Damage)} >= {paths[0].name, paths[2].name}
    with opened(tmp_path, max_bytes=16 * MIB) as spool:
        items = read_all(spool)
        assert numbers_of(items) == sorted(expected)
        assert sum(item.serials for item in items if isinstance(item, Damage)) == 200 - len(expected)


def test_a_body_that_looks_like_an_entry_is_not_one(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        appended(spool, 0)
        (path,) = segments(spool)
        inner = path.read_bytes()[40:]
        strange = attrs.evolve(entry(1).message, body=memoryview(inner[:4] * 500 + inner))
        spool.append([attrs.evolve(entry(1), message=strange), entry(2)])
        first, second, third = read_all(spool)
        assert isinstance(second, Spooled)
        assert second.message.body == strange.body
        assert numbers_of([first, third]) == [0, 2]


def test_a_spool_whose_cursor_is_lost_is_delivered_again(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        ends = appended(spool, *range(10))
        spool.commit(ends[4])
    cursor = tmp_path / "orders.spool" / "cursor"
    for damage in (b"", b"\0" * 100, b"x" + cursor.read_bytes()[1:]):
        cursor.write_bytes(damage)
        with opened(tmp_path) as spool:
            assert numbers_of(read_all(spool)) == list(range(10))


# When there is no room


def test_a_full_spool_refuses_and_goes_on_when_space_came_back(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=MIB) as spool:
        result = spool.append([entry(number, size_bytes=20_000) for number in range(100)])
        taken = len(result.ends)
        assert result.trouble is Trouble.FULL
        assert 40 < taken < 53
        assert spool.disk_bytes <= MIB
        assert spool.append([entry(taken, size_bytes=20_000)]).ends == []
        assert numbers_of(read_all(spool)) == list(range(taken))
        spool.commit(result.ends[9])
        again = spool.append([entry(number, size_bytes=20_000) for number in range(taken, 100)])
        assert len(again.ends) > 3
        assert spool.disk_bytes <= MIB
        assert numbers_of(read_all(spool)) == list(range(10, taken + len(again.ends)))


def test_what_is_to_stay_free_stays_free(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    with opened(tmp_path, keep_free_bytes=space.f_blocks * space.f_frsize) as spool:
        result = spool.append([entry(0)])
        assert (result.ends, result.trouble) == ([], Trouble.NO_SPACE)
        assert segments(spool) == []


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes beyond it fail in the middle: what a full disk does, for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.req("GC-DLV-22")
@pytest.mark.parametrize("limit", [20, 41, 1_000, 50_000, 100_000, 131_072, 200_001])
def test_a_write_that_fails_in_the_middle_leaves_whole_entries(tmp_path: Path, limit: int) -> None:
    batch = [entry(number, size_bytes=30_000) for number in range(20)]
    with opened(tmp_path) as spool:
        with file_size_limit(limit):
            result = spool.append(batch)
            assert result.trouble is Trouble.FAILED
            assert "File too large" in result.error
            taken = len(result.ends)
            assert numbers_of(read_all(spool)) == list(range(taken))
            assert spool.disk_bytes == sum(path.stat().st_size for path in segments(spool)) <= limit
        again = spool.append(batch[taken:])
        assert again.trouble is None
        assert numbers_of(read_all(spool)) == list(range(20))
    with opened(tmp_path) as spool:
        assert spool.cut_bytes == 0
        assert numbers_of(read_all(spool)) == list(range(20))


@pytest.mark.req("GC-DLV-22")
@pytest.mark.parametrize("cutting", [True, False])
@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_synced_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int, cutting: bool
) -> None:
    """After a failed sync nobody knows what is on disk: it is not taken for valid, also if it cannot be cut off."""
    with opened(tmp_path) as spool:
        appended(spool, 0, 1)

        def fail(*arguments: object) -> None:
            raise OSError(failure, os.strerror(failure))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            if not cutting:
                patch.setattr(os, "ftruncate", fail)
            result = spool.append([entry(2), entry(3), entry(4)])
        assert result.ends == []
        assert result.trouble is (Trouble.NO_SPACE if failure == errno.ENOSPC else Trouble.FAILED)
        assert numbers_of(read_all(spool)) == [0, 1]
        appended(spool, 3, 5, 6)  # the sink has taken 2 and 4 in the meantime
        assert numbers_of(read_all(spool)) == [0, 1, 3, 5, 6]
    with opened(tmp_path) as spool:
        assert numbers_of(read_all(spool)) == [0, 1, 3, 5, 6]


# Whose it is


def test_a_spool_of_another_link_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        ends = appended(spool, 0, 1)
    with pytest.raises(LinkError, match="belongs to the egress of link id 7, and not to link id 8"):
        opened(tmp_path, link_id=8)
    with opened(tmp_path) as spool:
        spool.commit(ends[-1])
        assert segments(spool) == []
    with pytest.raises(LinkError, match="belongs to the egress of link id 7, and not to link id 8"):
        opened(tmp_path, link_id=8)
    with opened(tmp_path, link="invoices", link_id=8) as other, opened(tmp_path) as spool:
        appended(other, 5)
        assert read_all(spool) == []


def test_a_spool_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gapconn.store.spool._VERSION", 2)
        with opened(tmp_path) as spool:
            appended(spool, 0)
    with pytest.raises(LinkError, match="has version 2, and this gapconn knows version 1"):
        opened(tmp_path)


def test_one_process_has_a_spool_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(LinkError, match=rf"another egress of link 'orders' \(PID {os.getpid()} "):
        opened(tmp_path)
    opened(tmp_path).close()


@pytest.mark.parametrize("where", ["a file", "below a file", "no permission at all"])
def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    places = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "spool",
        "no permission at all": Path("/proc/gapconn"),
    }
    with pytest.raises(LinkError, match=r"the spool cannot be used: .*spool\.directory must be writable"):
        opened(places[where])


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "deep") as spool:
            spool.commit(appended(spool, 0, 1)[0])
            modes = {path.name: path.stat().st_mode & 0o777 for path in spool.path.iterdir()}
    finally:
        os.umask(before)
    assert spool.path.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3


# Killed at any moment

WRITE = """
import sys
from itertools import count
from pathlib import Path
from tests.store.test_spool import appended, numbers_of, opened, read_all
spool = opened(Path(sys.argv[1]), max_bytes=16 << 20)
first = max((spool.end.serial, spool.cursor.serial))
for number in count(first, 7):
    ends = appended(spool, *range(number, number + 7), size_bytes=20_000)
    print("end", number + 7, flush=True)
    if number % 3 == 0:
        spool.commit(ends[3])
        print("cursor", number + 4, flush=True)
"""


@pytest.mark.req("GC-DLV-20")
def test_a_killed_process_has_kept_what_it_said(tmp_path: Path) -> None:
    chance = random.Random(8)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(chance.randrange(3, 40))]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split("\n")[:-1]
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        highest: dict[str, int] = {}
        for line in said:
            what, number = line.split()
            highest[what] = int(number)
        with opened(tmp_path, max_bytes=16 * MIB) as spool:
            items = read_all(spool)
            numbers = numbers_of(items)
            assert len(numbers) == len(items), "nothing is damaged"
            assert numbers == list(range(spool.cursor.serial, spool.end.serial))
            assert spool.end.serial >= highest["end"]
            assert highest.get("cursor", 0) <= spool.cursor.serial <= spool.end.serial
