"""Files arrive whole or not at all, in their place or nowhere, and nothing is missing without a word."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.errors import SinkError
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sinks.files import FilesSink
from gapconn.sinks.files_config import FilesSinkConfig
from gapconn.testing.pipes import Pipe, ScriptedInlet, make_context

MTIME_NS = 1_600_000_000_123_456_789


def opened(number: int, path: str, *, epoch: int = 1, **attributes: str | int | bool | None) -> Chunk:
    attributes = {"path": path, **attributes}
    return Chunk(stream=f"{epoch:x}-{number}", kind=ChunkKind.OPEN, position=0, attributes=attributes)


def data(number: int, position: int, value: bytes, *, epoch: int = 1) -> Chunk:
    return Chunk(stream=f"{epoch:x}-{number}", kind=ChunkKind.DATA, position=position, data=memoryview(value))


def ended(number: int, position: int, value: bytes, *, epoch: int = 1) -> Chunk:
    sha256 = hashlib.sha256(value).hexdigest()
    return Chunk(stream=f"{epoch:x}-{number}", kind=ChunkKind.END, position=position, attributes={"sha256": sha256})


def aborted(number: int, position: int) -> Chunk:
    return Chunk(stream=f"1-{number}", kind=ChunkKind.ABORT, position=position)


def alive(finished: int) -> Chunk:
    return Chunk(stream="", kind=ChunkKind.ALIVE, position=0, attributes={"open": 0, "finished": finished})


def whole(number: int, path: str, value: bytes = b"content", **attributes: str | int | bool | None) -> list[Chunk]:
    """A file as the source sends it."""
    begin = opened(number, path)
    begin.attributes |= {"size_bytes": len(value), "mode": 0o640, "mtime_ns": MTIME_NS, **attributes}
    return [begin, *([data(number, 0, value)] if value else []), ended(number, len(value), value)]


def batches(*chunks: Chunk) -> ScriptedInlet:
    """An inlet with a batch for each chunk."""
    return ScriptedInlet(script=[Batch(parts=[chunk]) for chunk in chunks])


def tree(directory: Path) -> dict[str, bytes]:
    """All files and links below `directory`, without the incoming directory when it is empty."""
    return {
        str(path.relative_to(directory)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


async def receive(inlet: ScriptedInlet, directory: Path, **config: Any) -> Context:
    """The context of a sink that wrote what is in `inlet`."""
    context = make_context(epoch=0)
    with trio.fail_after(10):
        await FilesSink(FilesSinkConfig(directory=str(directory), **config), context).run(inlet)
    return context


def reasons(inlet: ScriptedInlet) -> list[str]:
    return [reason for _, _, _, reason in inlet.losses]


async def test_a_file_is_put_in_its_place_with_mode_and_time(tmp_path: Path) -> None:
    inlet = batches(*whole(0, "a/b/report.txt", b"x" * 10))
    context = await receive(inlet, tmp_path / "new" / "target")
    path = tmp_path / "new" / "target" / "a" / "b" / "report.txt"
    status = path.stat()
    assert path.read_bytes() == b"x" * 10
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == MTIME_NS
    assert inlet.losses == []
    assert inlet.accepted == [0, 1, 2]
    assert context.status == {"files": 1, "bytes": 10, "receiving": None}


async def test_many_files_cross_in_one_batch(tmp_path: Path) -> None:
    chunks = [chunk for i in range(50) for chunk in whole(i, f"d{i % 3}/f{i}", b"%d" % i * (i % 4))]
    inlet = ScriptedInlet(script=[Batch(parts=[*chunks])])
    await receive(inlet, tmp_path)
    assert tree(tmp_path) == {f"d{i % 3}/f{i}": b"%d" % i * (i % 4) for i in range(50)}
    assert inlet.losses == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in a worker thread."""
    while not condition():  # noqa: ASYNC110 - a worker thread cannot set a Trio event
        await trio.sleep(0.001)


async def test_a_file_is_visible_and_accepted_when_it_is_whole(tmp_path: Path) -> None:
    pipe = Pipe()
    head, tail = Batch(parts=[opened(0, "f"), data(0, 0, b"abc")]), Batch(parts=[ended(0, 3, b"abc")])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                FilesSink(FilesSinkConfig(directory=str(tmp_path)), make_context(link_id=0xAB)).run, pipe
            )
            await pipe.send(head)
            await until(lambda: pipe.accepted == [0])
            assert tree(tmp_path) == {".incoming/ab-1.part": b"abc"}
            await pipe.send(tail)
            await until(lambda: pipe.accepted == [0, 1])
            assert tree(tmp_path) == {"f": b"abc"}
            pipe.close()


BAD_PATHS: list[tuple[str, dict[str, Any]]] = [
    ("absolute", {"path": "/etc/passwd"}),
    ("parent", {"path": "../outside"}),
    ("parent-inside", {"path": "a/../../outside"}),
    ("parent-at-the-end", {"path": "a/.."}),
    ("dot", {"path": "./a"}),
    ("empty", {"path": ""}),
    ("empty-component", {"path": "a//b"}),
    ("directory", {"path": "a/"}),
    ("null", {"path": "a\0b"}),
    ("long-name", {"path": "n" * 256}),
    ("long-path", {"path": "/".join(["n" * 200] * 25)}),
    ("reserved", {"path": ".incoming"}),
    ("reserved-inside", {"path": ".incoming/ab-1.part"}),
    ("reserved-capitals", {"path": ".INCOMING/x"}),
    ("no-path", {}),
    ("number", {"path": 5}),
    ("hex-parent", {"path_hex": "2e2e2f78"}),
    ("hex-null", {"path_hex": "00"}),
    ("hex-nonsense", {"path_hex": "xyz"}),
    ("both", {"path": "fine", "path_hex": "2e2e"}),
]


@pytest.mark.parametrize("attributes", [pytest.param(a, id=name) for name, a in BAD_PATHS])
async def test_no_name_reaches_outside_the_directory(tmp_path: Path, attributes: dict[str, Any]) -> None:
    directory = tmp_path / "in"
    bad = whole(0, "", b"evil")
    del bad[0].attributes["path"]
    bad[0].attributes |= attributes
    inlet = batches(*bad, *whole(1, "good"))
    context = await receive(inlet, directory)
    assert tree(tmp_path) == {"in/good": b"content"}
    assert inlet.losses == [("1-0", 0, 3, "path_refused")]
    assert context.counters["files_lost"] == 1
    assert inlet.accepted == [0, 1, 2, 3, 4, 5]


async def test_no_symbolic_link_in_the_tree_is_passed_through(tmp_path: Path) -> None:
    directory, outside = tmp_path / "in", tmp_path / "outside"
    directory.mkdir()
    outside.mkdir()
    (directory / "link").symlink_to(outside)
    (directory / "a").mkdir()
    (directory / "a" / "up").symlink_to("../..")
    inlet = batches(*whole(0, "link/f"), *whole(1, "a/up/f"), *whole(2, "a/f"))
    await receive(inlet, directory)
    assert reasons(inlet) == ["path_refused", "path_refused"]
    assert tree(outside) == {}
    assert tree(directory) == {"link": str(outside).encode(), "a/up": b"../..", "a/f": b"content"}


async def test_a_link_with_the_name_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    directory, victim = tmp_path / "in", tmp_path / "victim"
    directory.mkdir()
    victim.write_bytes(b"old")
    (directory / "f").symlink_to(victim)
    await receive(batches(*whole(0, "f")), directory)
    assert victim.read_bytes() == b"old"
    assert tree(directory) == {"f": b"content"}


async def test_a_link_in_place_of_the_incoming_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / ".incoming").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="symbolic link"):
        await receive(batches(*whole(0, "f")), tmp_path / "in")
    assert tree(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("path", ["taken/f", "folder"])
async def test_a_name_that_cannot_exist_is_reported_and_the_next_file_comes(tmp_path: Path, path: str) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    (tmp_path / "folder").mkdir()
    inlet = batches(*whole(0, path), *whole(1, "good"))
    await receive(inlet, tmp_path)
    assert reasons(inlet) == ["path_refused"]
    assert tree(tmp_path) == {"taken": b"a file", "good": b"content"}


async def test_a_name_that_is_not_utf8_arrives_byte_by_byte(tmp_path: Path) -> None:
    chunks = whole(0, "x")
    chunks[0].attributes = {"path_hex": b"d/\xff\xfe".hex()}
    inlet = batches(*chunks)
    await receive(inlet, tmp_path)
    assert os.listdir(os.fsencode(tmp_path / "d")) == [b"\xff\xfe"]
    assert inlet.losses == []


async def test_no_file_becomes_setuid(tmp_path: Path) -> None:
    await receive(batches(*whole(0, "f", mode=0o6755)), tmp_path)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o755


async def test_mode_and_time_can_be_left_to_the_target(tmp_path: Path) -> None:
    await receive(batches(*whole(0, "f", mode=0o777)), tmp_path, preserve=False)
    status = (tmp_path / "f").stat()
    assert status.st_mtime_ns != MTIME_NS
    assert stat.S_IMODE(status.st_mode) & 0o111 == 0


@pytest.mark.parametrize("mtime_ns", [-(10**18), 2**63 - 1, True, "today", None])
async def test_no_time_stops_a_file(tmp_path: Path, mtime_ns: Any) -> None:
    chunks = whole(0, "f")
    chunks[0].attributes["mtime_ns"] = mtime_ns
    await receive(batches(*chunks), tmp_path)
    assert tree(tmp_path) == {"f": b"content"}


async def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    await receive(batches(*whole(0, "f")), tmp_path)
    assert tree(tmp_path) == {"f": b"content"}


async def test_an_existing_file_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    context = await receive(batches(*whole(0, "f"), *whole(1, "g")), tmp_path, overwrite="keep")
    assert tree(tmp_path) == {"f": b"old", "g": b"content"}
    assert context.counters["existing_files_kept"] == 1
    assert context.status["files"] == 1


async def test_new_files_can_be_numbered(tmp_path: Path) -> None:
    chunks = [chunk for i in range(3) for chunk in whole(i, "f", b"%d" % i)]
    await receive(batches(*chunks), tmp_path, overwrite="number")
    assert tree(tmp_path) == {"f": b"0", "f.1": b"1", "f.2": b"2"}


@pytest.mark.parametrize(("overwrite", "expected"), [("keep", {"f": b"0"}), ("number", {"f": b"0", "f.1": b"1"})])
async def test_file_systems_without_hard_links_do_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: str, expected: dict[str, bytes]
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", no_links)
    await receive(batches(*whole(0, "f", b"0"), *whole(1, "f", b"1")), tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == expected


GOOD = b"content"
SIZE = {"size_bytes": 7}
BROKEN = [
    pytest.param([data(0, 0, GOOD), ended(0, 7, GOOD)], "beginning_missing", id="open-lost"),
    pytest.param([ended(0, 7, GOOD)], "beginning_missing", id="only-the-end-came"),
    pytest.param([opened(0, "f", **SIZE), data(0, 3, GOOD[3:]), ended(0, 7, GOOD)], "hole", id="first-data-lost"),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, GOOD[:3]), ended(0, 7, GOOD)], "hole", id="last-data-lost"),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, GOOD), data(0, 0, GOOD)], "hole", id="data-twice"),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, b"CONTENT"), ended(0, 7, GOOD)], "wrong_hash", id="wrong-bytes"),
    pytest.param(
        [opened(0, "f", size_bytes=8), data(0, 0, GOOD), ended(0, 7, GOOD)], "wrong_length", id="wrong-length"
    ),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, GOOD), aborted(0, 7)], "aborted", id="aborted"),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, GOOD), alive(1)], "end_missing", id="end-lost-then-idle"),
    pytest.param([opened(0, "f", **SIZE), data(0, 0, GOOD)], "end_missing", id="end-lost-then-another"),
]


@pytest.mark.parametrize(("chunks", "reason"), BROKEN)
@pytest.mark.parametrize("split", [True, False], ids=["batches", "one-batch"])
async def test_a_broken_file_leaves_nothing_and_is_reported_once(
    tmp_path: Path, chunks: list[Chunk], reason: str, split: bool
) -> None:
    (tmp_path / "f").write_bytes(b"the old version")
    everything = [*chunks, *whole(1, "good")]
    inlet = batches(*everything) if split else ScriptedInlet(script=[Batch(parts=[*everything])])
    context = await receive(inlet, tmp_path)
    (loss,) = inlet.losses
    assert (loss[0], loss[1], loss[3]) == ("1-0", 0, reason)
    assert loss[2] >= 6
    assert tree(tmp_path) == {"f": b"the old version", "good": b"content"}
    assert context.counters["files_lost"] == 1
    assert len(inlet.accepted) == len(list(inlet.script))


async def test_an_open_file_ends_with_the_session(tmp_path: Path) -> None:
    inlet = ScriptedInlet(script=[])
    old = Batch(parts=[opened(0, "f", epoch=1), data(0, 0, b"abc", epoch=1)])
    new = Batch(parts=[data(0, 3, b"def", epoch=2), opened(1, "g", epoch=2), ended(1, 0, b"", epoch=2)])
    inlet.script = [inlet.delivery(old, message=0, epoch=1), inlet.delivery(new, message=1, epoch=2)]
    await receive(inlet, tmp_path)
    assert inlet.losses == [("1-0", 0, 2, "ingress_restarted"), ("2-0", 0, 5, "beginning_missing")]
    assert tree(tmp_path) == {"g": b""}


async def test_an_open_file_ends_with_the_egress(tmp_path: Path) -> None:
    inlet = batches(opened(0, "f", size_bytes=100), data(0, 0, b"abc"))
    await receive(inlet, tmp_path)
    assert inlet.losses == [("1-0", 0, 99, "egress_stopped")]
    assert tree(tmp_path) == {}


async def test_files_of_which_nothing_came_are_reported_by_number(tmp_path: Path) -> None:
    inlet = batches(*whole(4, "first"), *whole(7, "f"), alive(8), alive(11), alive(11), *whole(11, "g"))
    context = await receive(inlet, tmp_path)
    assert inlet.losses == [("1", 5, 6, "file_missing"), ("1", 8, 10, "file_missing")]
    assert context.counters["files_lost"] == 5


async def test_a_new_session_is_known_to_begin_with_file_zero(tmp_path: Path) -> None:
    inlet = ScriptedInlet(script=[])
    first = Batch(parts=[opened(5, "f"), ended(5, 0, b"")])
    second = Batch(parts=[opened(2, "g", epoch=2), ended(2, 0, b"", epoch=2)])
    inlet.script = [inlet.delivery(first, message=0, epoch=1), inlet.delivery(second, message=1, epoch=2)]
    await receive(inlet, tmp_path)
    assert inlet.losses == [("2", 0, 1, "file_missing")]


async def test_leftovers_of_this_link_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    incoming = tmp_path / ".incoming"
    incoming.mkdir()
    (incoming / "1-7.part").write_bytes(b"ours")
    (incoming / "11-7.part").write_bytes(b"another link's")
    context = await receive(ScriptedInlet(script=[]), tmp_path)
    assert tree(tmp_path) == {".incoming/11-7.part": b"another link's"}
    assert context.counters["leftovers_removed"] == 1


async def test_a_full_disk_is_waited_for_and_the_order_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_write, refusals = os.pwrite, [errno.ENOSPC, errno.EDQUOT, errno.ENOSPC]

    def write_to_full_disk(fd: int, value: memoryview, offset: int) -> int:
        if offset and refusals:
            raise OSError(refusals.pop(), "no space")
        return really_write(fd, value[: 5 if not offset else None], offset)

    monkeypatch.setattr(os, "pwrite", write_to_full_disk)
    monkeypatch.setattr("gapconn.sinks.files.Backoff.failed", lambda self: 0.0)
    inlet = batches(*whole(0, "f", b"0123456789"), *whole(1, "g"))
    with structlog.testing.capture_logs() as logs:
        context = await receive(inlet, tmp_path)
    assert tree(tmp_path) == {"f": b"0123456789", "g": b"content"}
    assert context.counters["write_retries"] == 3
    assert inlet.accepted == list(range(6))
    assert inlet.losses == []
    assert "free disk space" in logs[0]["hint"]


async def test_a_failing_rename_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_rename, refusals = os.rename, [errno.EACCES, errno.EROFS]

    def refused(*arguments: Any, **keywords: Any) -> None:
        if refusals:
            raise OSError(refusals.pop(), "refused")
        really_rename(*arguments, **keywords)

    monkeypatch.setattr(os, "rename", refused)
    monkeypatch.setattr("gapconn.sinks.files.Backoff.failed", lambda self: 0.0)
    inlet = batches(*whole(0, "a/f"))
    context = await receive(inlet, tmp_path)
    assert tree(tmp_path) == {"a/f": b"content"}
    assert context.counters["write_retries"] == 2


async def test_data_that_the_disk_did_not_take_after_all_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_sync = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "input/output error")
        really_sync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    inlet = batches(*whole(0, "f"))
    await receive(inlet, tmp_path)
    assert reasons(inlet) == ["sync_failed"]
    assert tree(tmp_path) == {}


async def test_without_fsync_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    await receive(batches(*whole(0, "a/f")), tmp_path / "off", fsync=False)
    assert synced == []
    await receive(batches(*whole(0, "a/f")), tmp_path / "on")
    assert len(synced) == 3  # the file, the new directory's parent, the file's directory


async def test_a_temporary_file_that_somebody_removed_is_reported(tmp_path: Path) -> None:
    pipe = Pipe()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FilesSink(FilesSinkConfig(directory=str(tmp_path)), make_context()).run, pipe)
            await pipe.send(Batch(parts=[opened(0, "f"), data(0, 0, b"abc")]))
            await until(lambda: pipe.accepted == [0])
            os.unlink(tmp_path / ".incoming" / "1-1.part")
            await pipe.send(Batch(parts=[ended(0, 3, b"abc"), *whole(1, "g")]))
            pipe.close()
    assert [reason for *_, reason in pipe.losses] == ["vanished"]
    assert tree(tmp_path) == {"g": b"content"}


async def test_a_directory_that_was_moved_away_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    pipe = Pipe()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FilesSink(FilesSinkConfig(directory=str(directory)), make_context()).run, pipe)
            await pipe.send(Batch(parts=[*whole(0, "f")]))
            await until(lambda: pipe.accepted == [0])
            os.rename(directory, tmp_path / "away")
            await pipe.send(Batch(parts=[*whole(1, "g")]))
            pipe.close()
    assert tree(tmp_path) == {"away/f": b"content", "in/g": b"content"}
    assert pipe.losses == []


async def test_records_are_not_files(tmp_path: Path) -> None:
    inlet = ScriptedInlet(script=[Batch(parts=[Records(stream="orders", positions=[3, 4], values=[b"a", b"b"])])])
    context = await receive(inlet, tmp_path)
    assert inlet.losses == [("orders", 3, 4, "not_a_file")]
    assert context.counters["records_refused"] == 2


async def test_a_cancelled_sink_leaves_no_temporary_file(tmp_path: Path) -> None:
    pipe = Pipe()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FilesSink(FilesSinkConfig(directory=str(tmp_path)), make_context()).run, pipe)
            await pipe.send(Batch(parts=[opened(0, "f"), data(0, 0, b"abc")]))
            await until(lambda: pipe.accepted == [0])
            nursery.cancel_scope.cancel()
    assert tree(tmp_path) == {}
    assert [reason for *_, reason in pipe.losses] == ["egress_stopped"]


CONTENT = b"abcdef"
CHUNKS = st.one_of(
    st.builds(lambda n: opened(n, f"f{n}", size_bytes=len(CONTENT)), st.integers(0, 5)),
    st.builds(lambda n, at, to: data(n, at, CONTENT[at:to]), st.integers(0, 5), st.integers(0, 6), st.integers(0, 6)),
    st.builds(lambda n, at: ended(n, at, CONTENT), st.integers(0, 5), st.sampled_from([0, 3, 6])),
    st.builds(aborted, st.integers(0, 5), st.integers(0, 6)),
    st.builds(alive, st.integers(0, 6)),
)
WHOLE = st.builds(lambda n: whole(n, f"f{n}", CONTENT), st.integers(0, 5))


@given(st.lists(st.one_of(WHOLE, st.lists(CHUNKS, max_size=3)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_whatever_comes_only_whole_files_get_names(script: list[list[Chunk]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        inlet = ScriptedInlet(script=[Batch(parts=[*chunks]) for chunks in script])
        config = FilesSinkConfig(directory=name, fsync=False)
        trio.run(FilesSink(config, make_context()).run, inlet)
        placed = tree(Path(name))
        assert set(placed.values()) <= {CONTENT}
        assert not os.listdir(Path(name) / ".incoming")
    assert inlet.accepted == list(range(len(script)))
    sent_whole = {i for i in range(6) if whole(i, f"f{i}", CONTENT) in script}
    assert {f"f{i}" for i in sent_whole} <= set(placed)


@pytest.mark.req("GC-DLV-33")
async def test_whole_files_that_come_late_are_put_in_their_places(tmp_path: Path) -> None:
    """Also while another file is open; of what is not whole the beginning was thrown away already."""
    inlet = ScriptedInlet(script=[])
    third = whole(3, "third", b"123456")
    script = [
        (False, [*whole(0, "first")]),
        (False, [*third[:1], data(3, 0, b"123")]),
        (True, [*whole(1, "second"), opened(2, "torn")]),
        (False, [data(3, 3, b"456"), third[-1]]),
        (True, [*whole(4, "fourth")]),
        (False, [*whole(5, "fifth")]),
    ]
    inlet.script = [
        inlet.delivery(Batch(parts=[*parts]), message=number, late=late) for number, (late, parts) in enumerate(script)
    ]
    context = await receive(inlet, tmp_path)
    contents = {"first": b"content", "second": b"content", "fourth": b"content", "fifth": b"content"}
    assert tree(tmp_path) == {**contents, "third": b"123456"}
    assert inlet.losses == [("1", 1, 2, "file_missing")]
    assert inlet.finds == [("1", 1, 1)]
    assert (inlet.accepted, inlet.declined) == ([0, 1, 3, 4, 5], [2])
    assert (context.counters["files_late"], context.counters["late_unusable"]) == (1, 1)
