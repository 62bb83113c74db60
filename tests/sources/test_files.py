"""A watched directory: what is sent, when, how, and what becomes of it afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog.testing
import trio

from gapconn.errors import SourceError
from gapconn.filetree import path_of
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind
from gapconn.sinks.files import FilesSink
from gapconn.sinks.files_config import FilesSinkConfig
from gapconn.sources import files as files_module
from gapconn.sources.files import FilesSource, FilesSourceConfig
from gapconn.sources.watched_directory import SentLedger, Version, WatchedDirectory, WatchedFile
from gapconn.testing.pipes import Pipe, RecordingOutlet, make_context
from gapconn.units import Seconds

MTIME_NS = 1_600_000_000_123_456_789


def put(directory: Path, path: str, content: bytes = b"content") -> Path:
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def tree(directory: Path) -> dict[str, bytes]:
    """All files below `directory`, also while some of them go away."""
    found = {}
    for path in sorted(directory.rglob("*")):
        with suppress(FileNotFoundError):
            if path.is_file():
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in a worker thread."""
    while not condition():  # noqa: ASYNC110 - a worker thread cannot set a Trio event
        await trio.sleep(0.001)


def config_of(directory: Path, **keys: Any) -> FilesSourceConfig:
    keys = {"poll_interval": Seconds(0.01), "settle": Seconds(0.0), **keys}
    return FilesSourceConfig(directory=str(directory), **keys)


@asynccontextmanager
async def watching(directory: Path, outlet: RecordingOutlet, *, epoch: int = 1, **keys: Any) -> AsyncIterator[Context]:
    """The context of a source that runs in the background, and is stopped at the end."""
    context = make_context(epoch=epoch)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FilesSource(config_of(directory, **keys), context).run, outlet)
            yield context
            nursery.cancel_scope.cancel()


@attrs.define(kw_only=True)
class Arrived:
    """A transfer as a sink would see it."""

    attributes: dict[str, str | int | bool | None]
    data: bytes = b""
    end: Chunk | None = None

    @property
    def path(self) -> str:
        return os.fsdecode(b"/".join(path_of(self.attributes)))

    @property
    def whole(self) -> bool:
        return self.end is not None and self.end.kind is ChunkKind.END


def transfers(batches: list[Batch]) -> list[Arrived]:
    """All transfers in `batches`, with their positions and hashes checked."""
    found: dict[str, Arrived] = {}
    for chunk in (part for batch in batches for part in batch.parts):
        assert isinstance(chunk, Chunk)
        if chunk.kind is ChunkKind.ALIVE:
            continue
        if chunk.kind is ChunkKind.OPEN:
            assert chunk.stream == f"1-{len(found)}"
            found[chunk.stream] = Arrived(attributes=chunk.attributes)
        arrived = found[chunk.stream]
        assert chunk.position == len(arrived.data)
        assert arrived.end is None
        if chunk.kind is ChunkKind.DATA:
            arrived.data += bytes(chunk.data)
        elif chunk.kind is not ChunkKind.OPEN:
            arrived.end = chunk
        if chunk.kind is ChunkKind.END:
            assert chunk.attributes == {"sha256": hashlib.sha256(arrived.data).hexdigest()}
            assert arrived.attributes["size_bytes"] == len(arrived.data)
    return list(found.values())


def contents(batches: list[Batch]) -> dict[str, bytes]:
    """Whole files in `batches`."""
    return {arrived.path: arrived.data for arrived in transfers(batches) if arrived.whole}


async def test_a_tree_is_sent_and_moved(tmp_path: Path) -> None:
    expected = {"f": b"1", "a/b/c.txt": b"22", "a/empty": b"", "name with\nnewline": b"3"}
    for path, content in expected.items():
        put(tmp_path, path, content)
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet) as context:
        await until(lambda: tree(tmp_path) == {f".sent/{path}": content for path, content in expected.items()})
    assert contents(outlet.batches) == expected
    assert (context.status["files"], context.status["bytes"]) == (4, 4)


async def test_a_file_crosses_with_mode_and_time(tmp_path: Path) -> None:
    file = put(tmp_path, "f", b"x" * 10)
    file.chmod(0o4750)
    os.utime(file, ns=(MTIME_NS, MTIME_NS))
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)
    (arrived,) = transfers(outlet.batches)
    assert arrived.attributes == {"path": "f", "size_bytes": 10, "mode": 0o4750, "mtime_ns": MTIME_NS}


async def test_small_files_share_batches_and_are_sent_oldest_first(tmp_path: Path) -> None:
    for i in range(300):
        os.utime(put(tmp_path, f"{i * 7 % 300:03}", b"%03d" % i), ns=(MTIME_NS + i, MTIME_NS + i))
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet, after="delete"):
        await until(lambda: tree(tmp_path) == {})
    assert [arrived.data for arrived in transfers(outlet.batches)] == [b"%03d" % i for i in range(300)]
    assert len(outlet.batches) < 12


@pytest.mark.parametrize("batch_bytes", [1024, 50_000, 1 << 20])
async def test_a_large_file_is_cut_to_batches(tmp_path: Path, batch_bytes: int) -> None:
    content = random.Random(1).randbytes(2_500_000)
    put(tmp_path, "before", b"b")
    put(tmp_path, "large", content)
    put(tmp_path, "p" * 200, b"a")
    outlet = RecordingOutlet(batch_bytes=batch_bytes)
    async with watching(tmp_path, outlet, after="delete"):
        await until(lambda: tree(tmp_path) == {})
    assert contents(outlet.batches) == {"before": b"b", "large": content, "p" * 200: b"a"}
    for batch in outlet.batches:
        sizes = [len(part.data) for part in batch.parts if isinstance(part, Chunk)]
        assert sum(sizes) <= batch_bytes
    assert len(outlet.batches) < len(content) / (batch_bytes * 0.6) + 5


async def test_a_name_that_is_not_utf8_crosses_byte_by_byte(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    put(tmp_path, f"d/{name}")
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet):
        await until(lambda: tree(tmp_path) == {f".sent/d/{name}": b"content"})
    assert contents(outlet.batches) == {f"d/{name}": b"content"}


@attrs.define(kw_only=True)
class HoldingOutlet(RecordingOutlet):
    """Takes batches, but the kernel takes them only when told."""

    held: list[Callable[[], None]] = attrs.field(factory=list)

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        if on_sent is not None:
            self.held.append(on_sent)
        await RecordingOutlet.send(self, batch)


@pytest.mark.req("GC-DLV-1")
@pytest.mark.parametrize("after", ["move", "delete", "keep"])
async def test_a_file_is_put_away_only_when_the_kernel_took_its_end(tmp_path: Path, after: str) -> None:
    put(tmp_path, "f")
    outlet = HoldingOutlet()

    def put_away() -> bool:
        if after != "keep":
            return not (tmp_path / "f").exists()
        ledger = SentLedger(str(tmp_path / ".gapconn-sent.sqlite"))
        known = ledger.has(b"f", Version.of((tmp_path / "f").stat()))
        ledger.close()
        return known

    async with watching(tmp_path, outlet, after=after):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)
        await trio.sleep(0.05)  # several looks through the directory
        assert (tmp_path / "f").exists()
        assert not put_away()
        assert len(transfers(outlet.batches)) == 1
        outlet.held.pop()()
        await until(put_away)
    assert len(transfers(outlet.batches)) == 1


async def test_what_was_sent_when_stopped_is_still_put_away(tmp_path: Path) -> None:
    put(tmp_path, "f")

    @attrs.define(kw_only=True)
    class LateOutlet(HoldingOutlet):
        async def flush(self) -> None:
            while self.held:
                self.held.pop()()
            await trio.lowlevel.checkpoint()

    outlet = LateOutlet()
    async with watching(tmp_path, outlet):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)
    assert tree(tmp_path) == {".sent/f": b"content"}


async def test_kept_files_are_sent_once_and_again_when_they_change(tmp_path: Path) -> None:
    put(tmp_path, "same")
    put(tmp_path, "changing", b"one")
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet, after="keep"):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 2)
        put(tmp_path, "changing", b"two!")
        await outlet.wait_until(lambda batches: contents(batches).get("changing") == b"two!")
    assert [arrived.path for arrived in transfers(outlet.batches)].count("same") == 1

    put(tmp_path, "new")
    later = RecordingOutlet()
    async with watching(tmp_path, later, after="keep"):
        await later.wait_until(lambda batches: "new" in contents(batches))
        await trio.sleep(0.05)
    assert contents(later.batches) == {"new": b"content"}


def test_the_ledger_forgets_what_is_gone_for_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    stays, goes = put(tmp_path, "stays"), put(tmp_path, "goes")
    records = [WatchedFile(f.name.encode(), Version.of(f.stat()), 0.0) for f in (stays, goes)]
    ledger = SentLedger(str(tmp_path / "state"))
    ledger.record(records)
    goes.rename(tmp_path / "away")
    for day, known in [(0, True), (1, True), (6, True), (9, False)]:
        now = 1e9 + day * 86_400
        ledger.forget_gone(str(tmp_path))
        assert ledger.has(b"goes", records[1].version) is known
        assert ledger.has(b"stays", records[0].version)
    ledger.close()


async def test_an_earlier_sent_file_of_the_name_is_not_overwritten(tmp_path: Path) -> None:
    put(tmp_path, ".sent/a/f", b"earlier")
    put(tmp_path, "a/f", b"now")
    put(tmp_path, ".sent/a/" + "n" * 255, b"earlier")
    put(tmp_path, "a/" + "n" * 255, b"now")
    async with watching(tmp_path, RecordingOutlet()):
        await until(lambda: sorted(tree(tmp_path).values()) == [b"earlier", b"earlier", b"now", b"now"])
        await until(lambda: not os.listdir(tmp_path / "a"))
    assert {path for path, content in tree(tmp_path).items() if content == b"now"} <= {
        f".sent/a/{name}.1-{number}" for name in ("f", "n" * 251) for number in (0, 1)
    }


async def test_links_and_special_files_are_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "watched"
    secret = put(tmp_path, "secret/file", b"secret")
    put(directory, "good")
    (directory / "link").symlink_to(secret)
    (directory / "link-to-directory").symlink_to(secret.parent)
    os.mkfifo(directory / "pipe")
    outlet = RecordingOutlet()
    async with watching(directory, outlet) as context:
        await until((directory / ".sent" / "good").exists)
        await trio.sleep(0.05)
    assert contents(outlet.batches) == {"good": b"content"}
    assert context.counters["left_alone"] == 3  # counted once, not at every look


async def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "watched"
    put(directory, "sub/passwd", b"harmless")
    put(tmp_path, "etc/passwd", b"secret")
    really_scan = WatchedDirectory.scan

    def scan_then_swap(self: Any, now: float) -> Any:
        found = really_scan(self, now)
        if found.ready and not (directory / "sub").is_symlink():
            (directory / "sub").rename(tmp_path / "away")
            (directory / "sub").symlink_to(tmp_path / "etc")
        return found

    monkeypatch.setattr(WatchedDirectory, "scan", scan_then_swap)
    outlet = RecordingOutlet()
    async with watching(directory, outlet) as context:
        await until(lambda: context.counters["unreadable"] > 0)
    assert contents(outlet.batches) == {}
    assert tree(tmp_path)["etc/passwd"] == b"secret"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"a.csv", "sub/b.csv", "c.txt"}),
        ({"pattern": "*.csv"}, {"a.csv", "sub/b.csv"}),
        ({"exclude": ["sub", "*.part"]}, {"a.csv", "c.txt", ".hidden", "d.tmp", ".git/config"}),
        ({"exclude": []}, {"a.csv", "sub/b.csv", "c.txt", ".hidden", "d.tmp", "e.part", ".git/config"}),
    ],
)
async def test_names_choose_what_is_sent(tmp_path: Path, keys: dict[str, Any], expected: set[str]) -> None:
    for path in ("a.csv", "sub/b.csv", "c.txt", ".hidden", "d.tmp", "e.part", ".git/config"):
        put(tmp_path, path)
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet, **keys) as context:
        await outlet.wait_until(lambda batches: len(contents(batches)) >= len(expected))
        await trio.sleep(0.03)
    assert set(contents(outlet.batches)) == expected
    assert len(transfers(outlet.batches)) == len(expected)
    assert (context.status["excluded"] > 0) == (len(expected) < 7)


def test_a_file_is_ready_when_it_has_settled(tmp_path: Path) -> None:
    directory = WatchedDirectory(
        str(tmp_path), pattern="*", exclude=[], settle_s=10, after="delete", sent_directory=None, state_file=None
    )

    def ready(now: float) -> list[bytes]:
        return [file.path for file in directory.scan(now).ready]

    put(tmp_path, "f", b"1")
    assert ready(100) == []
    assert ready(109) == []
    put(tmp_path, "f", b"12")  # grows
    assert ready(111) == []
    os.utime(tmp_path / "f", ns=(MTIME_NS, MTIME_NS))  # written anew, with the same size
    assert ready(120) == []
    put(tmp_path, "unrelated", b"")
    assert ready(129.9) == []
    assert ready(130) == [b"f"]
    os.replace(put(tmp_path, "temporary", b"12"), tmp_path / "f")  # another file takes the name
    assert ready(131) == []
    assert directory.scan(131).waiting == 2
    assert sorted(ready(150)) == [b"f", b"unrelated"]


@attrs.define(kw_only=True)
class MeddlingOutlet(RecordingOutlet):
    """Does something to the file while it is being sent, once."""

    meddle: Callable[[], object] | None

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        await RecordingOutlet.send(self, batch, on_sent)
        if self.meddle is not None:
            self.meddle()
            self.meddle = None


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite"])
async def test_a_file_that_changes_while_it_is_read_is_sent_again(tmp_path: Path, change: str) -> None:
    old = bytes(8 << 20)
    new = {"append": old + b"more", "truncate": old[:100], "rewrite": b"\1" * len(old)}[change]
    put(tmp_path, "f", old)
    outlet = MeddlingOutlet(meddle=lambda: put(tmp_path, "f", new))
    async with watching(tmp_path, outlet, after="delete") as context:
        await until(lambda: tree(tmp_path) == {})
    first, last = transfers(outlet.batches)
    assert first.end is not None
    assert first.end.kind is ChunkKind.ABORT
    assert last.data == new
    assert context.counters["changed_while_read"] == 1


async def test_another_file_of_the_name_is_not_put_away_with_the_old_one(tmp_path: Path) -> None:
    put(tmp_path, "f", b"first")
    outlet = HoldingOutlet()
    async with watching(tmp_path, outlet, after="delete"):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)
        os.replace(put(tmp_path, ".f", b"second"), tmp_path / "f")
        outlet.held.pop()()
        await until(lambda: bool(outlet.held))
        assert (tmp_path / "f").read_bytes() == b"second"
        outlet.held.pop()()
        await until(lambda: not (tmp_path / "f").exists())
    assert [arrived.data for arrived in transfers(outlet.batches)] == [b"first", b"second"]


async def test_an_unreadable_file_is_tried_again_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open, refusals = os.open, [errno.EACCES, errno.EIO]

    def refuse(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if path == b"bad" and refusals:
            raise OSError(refusals.pop(), "refused")
        return really_open(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("gapconn.sources.files.Backoff.failed", lambda self: 0.01)
    put(tmp_path, "bad")
    put(tmp_path, "good")
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet) as context:
        await outlet.wait_until(lambda batches: len(contents(batches)) == 2)
    assert [arrived.path for arrived in transfers(outlet.batches)] == ["good", "bad"]
    assert context.counters["unreadable"] == 2


async def test_a_disk_that_fails_in_the_middle_breaks_the_file_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_read, failures = os.read, [errno.EIO]

    def read(fd: int, size: int) -> bytes:
        if size < 1 << 20 and failures and stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(failures.pop(), "input/output error")
        return really_read(fd, size)

    monkeypatch.setattr(os, "read", read)
    monkeypatch.setattr("gapconn.sources.files.Backoff.failed", lambda self: 0.0)
    content = bytes((1 << 20) + 5)
    put(tmp_path, "f", content)
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet) as context:
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)
    assert [arrived.whole for arrived in transfers(outlet.batches)] == [False, True]
    assert contents(outlet.batches) == {"f": content}
    assert context.counters["unreadable"] == 1


async def test_a_file_that_cannot_be_put_away_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_rename, refusals = os.rename, [errno.EACCES] * 3

    def rename(*arguments: Any, **keywords: Any) -> None:
        if refusals:
            raise OSError(refusals.pop(), "refused")
        really_rename(*arguments, **keywords)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr("gapconn.sources.files.Backoff.failed", lambda self: 0.03)
    put(tmp_path, "f")
    outlet = RecordingOutlet()
    async with watching(tmp_path, outlet) as context:
        await until(lambda: tree(tmp_path) == {".sent/f": b"content"})
    assert len(transfers(outlet.batches)) == 1
    assert context.counters["put_away_retries"] == 3


async def test_a_directory_that_does_not_exist_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gapconn.sources.files.Backoff.failed", lambda self: 0.03)
    outlet, directory = RecordingOutlet(), tmp_path / "later"
    with structlog.testing.capture_logs() as logged:
        async with watching(directory, outlet) as context:
            await until(lambda: context.counters["scans_failed"] > 0)
            directory.mkdir()
            put(directory, "f")
            await until(lambda: contents(outlet.batches) == {"f": b"content"})
    failed = next(entry for entry in logged if entry["event"] == "scan_failed")
    assert failed["remedy"] == "create the directory or correct source.directory; it is tried again"


async def test_a_sink_that_is_left_waiting_hears_that_nothing_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_IDLE_FIRST_S", 0.05)
    monkeypatch.setattr(files_module, "_IDLE_AGAIN_S", 0.05)
    put(tmp_path, "a")
    put(tmp_path, "b")
    outlet = RecordingOutlet()

    def alive(batches: list[Batch]) -> list[Chunk]:
        parts = [part for batch in batches for part in batch.parts if isinstance(part, Chunk)]
        return [part for part in parts if part.kind is ChunkKind.ALIVE]

    async with watching(tmp_path, outlet, poll_interval=Seconds(5.0)):
        await outlet.wait_until(lambda batches: len(contents(batches)) == 2 and len(alive(batches)) >= 3)
    said = alive(outlet.batches)[-1]
    assert (said.stream, said.attributes) == ("", {"open": 0, "finished": 2})


async def test_a_file_in_the_middle_of_which_the_source_is_stopped_is_broken_off(tmp_path: Path) -> None:
    put(tmp_path, "f", bytes(8 << 20))
    stop = trio.CancelScope()
    outlet = MeddlingOutlet(meddle=stop.cancel)
    with trio.fail_after(5), stop:
        await FilesSource(config_of(tmp_path), make_context()).run(outlet)
    (arrived,) = transfers(outlet.batches)
    assert arrived.end is not None
    assert arrived.end.kind is ChunkKind.ABORT
    assert tree(tmp_path) == {"f": bytes(8 << 20)}


async def test_a_directory_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.sources.files.Backoff.failed", lambda self: 0.01)
    directory = tmp_path / "later"
    outlet = RecordingOutlet()
    async with watching(directory, outlet) as context:
        await until(lambda: context.counters["scans_failed"] >= 2)
        assert not directory.exists()
        put(directory, "f")
        await outlet.wait_until(lambda batches: len(contents(batches)) == 1)


@pytest.mark.parametrize(
    ("sent_directory", "message"), [(".", "must not be the watched directory"), ("/proc", "same file system")]
)
async def test_a_sent_directory_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_directory: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = FilesSource(config_of(tmp_path, sent_directory=sent_directory), make_context())
    with trio.fail_after(5), pytest.RaisesGroup(pytest.RaisesExc(SourceError, match=message)):
        await source.run(RecordingOutlet())


async def test_a_sent_directory_and_a_state_file_inside_are_not_sent(tmp_path: Path) -> None:
    put(tmp_path, "data/s.csv")
    outlet = RecordingOutlet()
    keys: dict[str, Any] = {"exclude": [], "sent_directory": str(tmp_path / "archive")}
    async with watching(tmp_path, outlet, **keys):
        await until(lambda: tree(tmp_path) == {"archive/data/s.csv": b"content"})
        await trio.sleep(0.03)
    assert set(contents(outlet.batches)) == {"data/s.csv"}
    put(tmp_path, "data/s.csv")
    outlet = RecordingOutlet()
    keys |= {"after": "keep", "state_file": str(tmp_path / "data" / "s")}
    async with watching(tmp_path, outlet, **keys):
        await outlet.wait_until(lambda batches: "data/s.csv" in contents(batches))
        await trio.sleep(0.03)
    assert set(contents(outlet.batches)) == {"data/s.csv"}


async def carry(source: Path, target: Path, pipe: Pipe, files: int) -> None:
    """Run a source against a sink until `files` files are put away."""
    sent = source / ".sent"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FilesSink(FilesSinkConfig(directory=str(target), fsync=False), make_context()).run, pipe)
            async with trio.open_nursery() as source_nursery:
                source_nursery.start_soon(FilesSource(config_of(source), make_context()).run, pipe)
                await until(lambda: sent.exists() and len(tree(sent)) == files)
                source_nursery.cancel_scope.cancel()
            pipe.close()


def make_tree(directory: Path, seed: int) -> dict[str, bytes]:
    """Files of many sizes."""
    draw = random.Random(seed)
    made = {}
    for i in range(60):
        path, size = f"{'d/' * (i % 4)}{i}", draw.choice([0, 1, 1000, 70_000, 300_000])
        made[path] = draw.randbytes(size)
        put(directory, path, made[path])
    return made


async def test_a_tree_arrives_identical(tmp_path: Path) -> None:
    made = make_tree(tmp_path / "out", 0)
    pipe = Pipe()
    await carry(tmp_path / "out", tmp_path / "in", pipe, len(made))
    assert tree(tmp_path / "in") == made
    assert pipe.losses == []


@pytest.mark.parametrize("seed", range(6))
async def test_on_a_lossy_link_every_file_arrives_whole_or_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(files_module, "_IDLE_FIRST_S", 0.0)
    monkeypatch.setattr(files_module, "_IDLE_AGAIN_S", 0.01)
    made = make_tree(tmp_path / "out", seed)
    draw = random.Random(seed)
    order: list[str] = []
    pipe = Pipe(drop=lambda number: draw.random() < 0.1)
    really_open = files_module._Reader._open

    def note(self: Any, path: bytes) -> int:
        order.append(os.fsdecode(path))
        return really_open(self, path)

    monkeypatch.setattr(files_module._Reader, "_open", note)
    await carry(tmp_path / "out", tmp_path / "in", pipe, len(made))
    arrived = tree(tmp_path / "in")
    assert {path: made[path] for path in arrived} == arrived
    reported: list[int] = []
    for stream, first, last, reason in pipe.losses:
        reported += range(first, last + 1) if reason == "file_missing" else [int(stream.rpartition("-")[2])]
    assert len(reported) == len(set(reported))
    lost = [number for number, path in enumerate(order) if path not in arrived]
    # Before the first file that it sees, a sink cannot know whether there were others; at the end, what says so may be
    # lost as well.
    assert lost
    assert set(reported) <= set(lost)
    seen = [number for number in range(len(order)) if number in reported or order[number] in arrived]
    assert set(range(seen[0], seen[-1] + 1)) == set(seen)
