"""What each end remembers: durable, bounded, locked, and never silently started anew."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from gapconn.errors import LinkError
from gapconn.pauses import Hold
from gapconn.protocol.envelope import Run
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.reassembler import Ahead
from gapconn.store.database import StateDiskError
from gapconn.store.state import POSITIONS_MAX, U64_MAX, EgressState, IngressState

Opener = Callable[[Path, str, int], Any]

BOTH = pytest.mark.parametrize(
    ("role", "opener"), [("ingress", IngressState.open), ("egress", EgressState.open)], ids=["ingress", "egress"]
)


LARGEST = Standing(U64_MAX, U64_MAX, U64_MAX)


def at(position: int) -> Standing:
    return Standing(1, 0, position)


def progress(epoch: int, next_message: int, next_record: int, positions: dict[tuple[str, int], Standing]) -> Progress:
    """Progress with all that is known delivered."""
    return Progress(
        epoch=epoch,
        next_message=next_message,
        next_record=next_record,
        positions=positions,
        messages_known=next_message + 2,
        records_known=next_record + 20,
        ended=next_message % 2 == 0,
    )


def _file(directory: Path, role: str, link: str = "orders") -> Path:
    return directory / f"{link}.{role}.sqlite"


def _change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


def _child(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("clock_epoch", "expected"),
    [
        pytest.param(1000, (1000, 700), id="clock ahead"),
        pytest.param(701, (701, 700), id="clock just ahead"),
        pytest.param(700, (701, 700), id="clock stands"),
        pytest.param(3, (701, 700), id="clock stepped back"),
        pytest.param(0, (701, 700), id="no clock"),
        pytest.param(U64_MAX, (U64_MAX, 700), id="highest epoch"),
    ],
)
def test_an_epoch_is_above_the_stored_one(tmp_path: Path, clock_epoch: int, expected: tuple[int, int]) -> None:
    with IngressState.open(tmp_path, "orders", 7) as state:
        assert state.begin_session(700) == (700, 0)
    with IngressState.open(tmp_path, "orders", 7) as state:
        assert state.begin_session(clock_epoch) == expected


def test_there_is_no_epoch_after_the_highest(tmp_path: Path) -> None:
    with IngressState.open(tmp_path, "orders", 7) as state:
        state.begin_session(U64_MAX)
        with pytest.raises(LinkError, match="no higher one"):
            state.begin_session(1)
    with IngressState.open(tmp_path, "orders", 7) as state, pytest.raises(LinkError, match=str(U64_MAX)):
        state.begin_session(1)


def test_a_clock_epoch_that_does_not_fit_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with IngressState.open(tmp_path, "orders", 7) as state:
        for wrong in (-1, U64_MAX + 1):
            with pytest.raises(ValueError, match="clock_epoch"):
                state.begin_session(wrong)
        assert state.begin_session(5) == (5, 0)


def test_progress_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() is None
        names = {("a", 0): at(1), ("a", 1): LARGEST, ("ä/\0'\"", 0): at(-1), ("", -3): at(2**63)}
        state.save(progress(U64_MAX, U64_MAX, U64_MAX, names))
        state.save(progress(U64_MAX, 12, 13, {("a", 0): Standing(8, 7, 9), ("new", 2**40): at(0)}))
    with EgressState.open(tmp_path, "orders", 7) as state:
        changed = {("a", 0): Standing(8, 7, 9), ("new", 2**40): at(0)}
        assert state.load() == progress(U64_MAX, 12, 13, names | changed)


def test_positions_updated_longest_ago_are_forgotten_beyond_the_limit(tmp_path: Path) -> None:
    with EgressState.open(tmp_path, "orders", 7) as state:
        state.save(progress(1, 1, 1, {("s", n): at(n) for n in range(POSITIONS_MAX)}))
        state.save(progress(1, 2, 2, {("s", 0): at(5)}))  # the oldest becomes the youngest
        state.save(progress(1, 3, 3, {("t", n): at(n) for n in range(10)}))
        found = state.load()
    assert found is not None
    kept = found.positions
    assert len(kept) == POSITIONS_MAX
    assert kept["s", 0] == at(5)
    assert all(("s", n) not in kept for n in range(1, 11))
    assert ("s", 11) in kept
    assert all(("t", n) in kept for n in range(10))


def test_a_save_that_fails_stores_nothing(tmp_path: Path) -> None:
    with EgressState.open(tmp_path, "orders", 7) as state:
        state.save(progress(1, 10, 10, {("s", 0): at(10)}))
        with pytest.raises(UnicodeEncodeError):
            state.save(progress(1, 20, 20, {("s", 0): at(20), ("\udc80", 0): at(1)}))
        assert state.load() == progress(1, 10, 10, {("s", 0): at(10)})
        state.save(progress(1, 30, 30, {("s", 0): at(30)}))
        assert state.load() == progress(1, 30, 30, {("s", 0): at(30)})


def test_a_full_disk_is_reported_and_the_next_save_works(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EgressState.open(tmp_path, "orders", 7) as state:
        state.save(progress(1, 10, 10, {("s", 0): at(10)}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        try:
            with pytest.raises(StateDiskError, match=r"cannot be saved.*a disk with free space"):
                state.save(progress(1, 20, 20, {("x" * 100, n): at(20) for n in range(10_000)}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert state.load() == progress(1, 10, 10, {("s", 0): at(10)})
        state.save(progress(1, 30, 30, {("s", 0): at(30)}))
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() == progress(1, 30, 30, {("s", 0): at(30)})


@BOTH
def test_only_the_owner_can_read_the_files(tmp_path: Path, role: str, opener: Opener) -> None:
    directory = tmp_path / "deep" / "state"
    previous = os.umask(0)
    try:
        with opener(directory, "orders", 7) as state:
            if isinstance(state, EgressState):
                state.save(progress(1, 1, 1, {("s", 0): at(1)}))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(previous)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert _file(directory, role).name in modes
    assert set(modes.values()) == {0o600}
    files = [f"orders.{role}.lock", f"orders.{role}.sqlite"]
    if role == "egress":
        files += ["orders.gaps.lock", "orders.gaps.sqlite"]
    assert sorted(path.name for path in directory.iterdir()) == files


@BOTH
def test_links_and_roles_share_a_directory(tmp_path: Path, role: str, opener: Opener) -> None:
    with opener(tmp_path, "orders", 7), opener(tmp_path, "invoices", 8):
        other = EgressState.open if role == "ingress" else IngressState.open
        with other(tmp_path, "orders", 7):
            assert len(list(tmp_path.glob("*.*gress.sqlite"))) == 3


HOLD = """
import signal, sys
from pathlib import Path
from gapconn.protocol.positions import Standing
from gapconn.pauses import Hold
from gapconn.store.state import EgressState, IngressState
state = {"ingress": IngressState, "egress": EgressState}[sys.argv[1]].open(Path(sys.argv[2]), "orders", 7)
print("held", flush=True)
signal.pause()
"""


@BOTH
def test_a_second_process_of_the_link_is_refused_until_the_first_ends(
    tmp_path: Path, role: str, opener: Opener
) -> None:
    with _child(HOLD, role, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            with pytest.raises(LinkError, match=f"another {role} of link 'orders'") as refused:
                opener(tmp_path, "orders", 7)
            assert f"PID {child.pid} " in str(refused.value)
            assert str(tmp_path / f"orders.{role}.lock") in str(refused.value)
            # Refusing took nothing away: the first is still alone, and a third is refused as well.
            with pytest.raises(LinkError, match="another"):
                opener(tmp_path, "orders", 7)
            # Somebody who deletes the lock file does not get in either: the database is held too.
            (tmp_path / f"orders.{role}.lock").unlink()
            with pytest.raises(LinkError, match="another process has the stored state open"):
                opener(tmp_path, "orders", 7)
        finally:
            child.kill()
    opener(tmp_path, "orders", 7).close()


@BOTH
def test_the_lock_is_free_after_close_and_after_a_refusal(tmp_path: Path, role: str, opener: Opener) -> None:
    state = opener(tmp_path, "orders", 7)
    state.close()
    state.close()
    with pytest.raises(LinkError, match="closed"):
        state.load() if role == "egress" else state.begin_session(1)
    with pytest.raises(LinkError, match="belongs to"):
        opener(tmp_path, "orders", 8)
    opener(tmp_path, "orders", 7).close()


SAVE = """
import sys
from itertools import count
from pathlib import Path
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.pauses import Hold
from gapconn.store.state import EgressState, IngressState
if sys.argv[1] == "egress":
    state = EgressState.open(Path(sys.argv[2]), "orders", 7)
    for n in count(1):
        positions = {("s", partition): Standing(1, 0, n) for partition in range(50)}
        state.save(Progress(epoch=3, next_message=n, next_record=n, positions=positions))
        print(n, flush=True)
else:
    state = IngressState.open(Path(sys.argv[2]), "orders", 7)
    for n in count(1):
        print(state.begin_session(0)[0], flush=True)
"""


def _killed_while_saving(directory: Path, role: str, saves: int) -> int:
    """The last save that the process said was done before it was killed."""
    with _child(SAVE, role, directory) as child:
        assert child.stdout is not None
        for _ in range(saves):
            said = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        said = [said, *child.stdout.read().split("\n")[:-1]][-1]  # an unfinished line was not said
    assert child.returncode == -signal.SIGKILL
    return int(said)


def test_a_killed_egress_kept_every_save_and_no_half_one(tmp_path: Path) -> None:
    for saves in (1, 7, 40):
        said = _killed_while_saving(tmp_path, "egress", saves)
        with EgressState.open(tmp_path, "orders", 7) as state:
            found = state.load()
        assert found is not None
        assert found.next_message in (said, said + 1)
        assert found.next_record == found.next_message
        assert found.positions == {("s", partition): at(found.next_message) for partition in range(50)}


def test_a_killed_ingress_never_uses_an_epoch_twice(tmp_path: Path) -> None:
    last = 0
    for saves in (1, 5, 20):
        said = _killed_while_saving(tmp_path, "ingress", saves)
        assert said > last
        with IngressState.open(tmp_path, "orders", 7) as state:
            epoch, previous = state.begin_session(0)
        assert previous in (said, said + 1)
        assert epoch == previous + 1
        last = epoch


def test_an_unfinished_first_start_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "orders.ingress.sqlite.new").write_bytes(b"half of a file")
    with IngressState.open(tmp_path, "orders", 7) as state:
        assert state.begin_session(9) == (9, 0)
    assert not (tmp_path / "orders.ingress.sqlite.new").exists()


def test_a_file_that_was_moved_away_does_not_come_back_from_its_log(tmp_path: Path) -> None:
    _killed_while_saving(tmp_path, "egress", 3)
    assert (tmp_path / "orders.egress.sqlite-wal").exists()
    _file(tmp_path, "egress").rename(tmp_path / "away")
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() is None


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a database at all" * 100),
    "random": lambda path: path.write_bytes(os.urandom(8192)),
    "truncated": _truncated,
    "garbled": _garbled,
    "another database": lambda path: _change(path, "PRAGMA application_id = 1"),
    "no owner": lambda path: _change(path, "DELETE FROM owner"),
    "no table": lambda path: _change(path, "DROP TABLE owner"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@BOTH
def test_damage_is_refused_with_advice_and_left_alone(tmp_path: Path, role: str, opener: Opener, damage: str) -> None:
    opener(tmp_path, "orders", 7).close()
    path = _file(tmp_path, role)
    DAMAGE[damage](path)
    before = path.read_bytes()
    with pytest.raises(LinkError, match="is damaged") as refused:
        opener(tmp_path, "orders", 7)
    assert str(path) in str(refused.value)
    assert "move it away" in str(refused.value)
    assert path.read_bytes() == before
    path.unlink()
    opener(tmp_path, "orders", 7).close()


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    with IngressState.open(tmp_path, "orders", 7) as ingress, EgressState.open(tmp_path, "orders", 7) as egress:
        ingress.begin_session(5)
        egress.save(progress(1, 1, 1, {("s", 0): at(1)}))
    _change(_file(tmp_path, "ingress"), "UPDATE session SET last_epoch = 'many'")
    _change(_file(tmp_path, "egress"), "UPDATE position SET position = x'00ff'")
    with IngressState.open(tmp_path, "orders", 7) as ingress, pytest.raises(LinkError, match="'many' is not a number"):
        ingress.begin_session(9)
    with EgressState.open(tmp_path, "orders", 7) as egress, pytest.raises(LinkError, match="is not a number"):
        egress.load()


@BOTH
def test_a_newer_version_of_the_file_is_refused(tmp_path: Path, role: str, opener: Opener) -> None:
    opener(tmp_path, "orders", 7).close()
    _change(_file(tmp_path, role), "PRAGMA user_version = 2")
    with pytest.raises(LinkError, match=r"has version 2, and this gapconn knows version 1\. Run the gapconn"):
        opener(tmp_path, "orders", 7)


@BOTH
def test_the_state_of_another_link_or_role_is_refused(tmp_path: Path, role: str, opener: Opener) -> None:
    opener(tmp_path, "orders", 7).close()
    with pytest.raises(LinkError, match=f"belongs to the {role} of link id 7, and not to the {role} of link id 8"):
        opener(tmp_path, "orders", 8)
    other, other_opener = ("egress", EgressState.open) if role == "ingress" else ("ingress", IngressState.open)
    _file(tmp_path, role).rename(_file(tmp_path, other))
    with pytest.raises(LinkError, match=r"belongs to the|is damaged"):
        other_opener(tmp_path, "orders", 7)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach (pytest's own are private)."""
    with tempfile.TemporaryDirectory(prefix="gapconn-test-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


@pytest.fixture
def ordinary_user(open_directory: Path) -> Iterator[None]:
    """Not root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(open_directory, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("ordinary_user")
@BOTH
def test_a_directory_that_cannot_be_written_is_refused(open_directory: Path, role: str, opener: Opener) -> None:
    open_directory.chmod(0o555)
    with pytest.raises(
        LinkError, match=r"cannot be opened.*Permission denied.*must be writable by the user"
    ) as refused:
        opener(open_directory, "orders", 7)
    assert str(_file(open_directory, role)) in str(refused.value)


@pytest.mark.usefixtures("ordinary_user")
@BOTH
def test_a_file_that_cannot_be_written_is_refused(open_directory: Path, role: str, opener: Opener) -> None:
    opener(open_directory, "orders", 7).close()
    _file(open_directory, role).chmod(0o400)
    with pytest.raises(LinkError, match=r"cannot be opened.*must be writable by the user"):
        opener(open_directory, "orders", 7)


@BOTH
@pytest.mark.parametrize("where", ["a file", "below a file", "no permission at all"])
def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, role: str, opener: Opener, where: str) -> None:
    (tmp_path / "file").write_text("")
    places = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "state",
        "no permission at all": Path("/proc/gapconn"),
    }
    with pytest.raises(LinkError, match="cannot be opened") as refused:
        opener(places[where], "orders", 7)
    assert str(_file(places[where], role)) in str(refused.value)


@BOTH
@pytest.mark.parametrize("link", ["", "a/b", "../x", "a\0b"])
def test_a_name_that_would_leave_the_directory_is_refused(tmp_path: Path, role: str, opener: Opener, link: str) -> None:
    with pytest.raises(LinkError, match="cannot be part of a file name"):
        opener(tmp_path / "state", link, 7)
    assert not (tmp_path / "state").exists()


@BOTH
def test_a_name_with_odd_characters_is_a_file_name(tmp_path: Path, role: str, opener: Opener) -> None:
    opener(tmp_path, "50% of #1?mode=memory", 7).close()
    assert _file(tmp_path, role, "50% of #1?mode=memory").exists()


def test_holds_are_kept_also_in_a_file_that_was_made_before_there_were_any(tmp_path: Path) -> None:
    with IngressState.open(tmp_path, "orders", 1) as state, state._file.transaction("saved") as db:
        db.execute("DROP TABLE hold")
    holds = [Hold(owner="operator", reason="disk", since_s=1.5, renewed_s=2.5)]
    with IngressState.open(tmp_path, "orders", 1) as state:
        assert state.holds() == []
        state.save_holds(holds)
    with IngressState.open(tmp_path, "orders", 1) as state:
        assert state.holds() == holds
        state.save_holds([])
        assert state.holds() == []


@pytest.mark.req("GC-DLV-36")
def test_what_was_delivered_ahead_is_kept_until_it_has_had_its_turn(tmp_path: Path) -> None:
    run = Run("orders", 3, 4, 5, U64_MAX, 2, 0, True, 1)
    second = Ahead(number=2, first_record=20, record_count=2, runs=(run,))
    third = Ahead(number=U64_MAX, first_record=U64_MAX, record_count=0, runs=())
    before = progress(5, 1, 10, {})
    with EgressState.open(tmp_path, "orders", 7) as state:
        state.save(attrs.evolve(before, ahead=(second,)))
        state.save(attrs.evolve(before, ahead=(third,)))  # what is new
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() == attrs.evolve(before, ahead=(second, third))
        state.save(progress(5, 3, 22, {}))
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() == attrs.evolve(progress(5, 3, 22, {}), ahead=(third,))
        state.save(progress(6, 0, 0, {}))
    with EgressState.open(tmp_path, "orders", 7) as state:
        assert state.load() == progress(6, 0, 0, {})


def test_a_save_that_fails_leaves_what_was_delivered_ahead_to_be_taken_out_by_the_next(tmp_path: Path) -> None:
    ahead = tuple(Ahead(number=n, first_record=n, record_count=1, runs=()) for n in (12, 13))
    with EgressState.open(tmp_path, "orders", 7) as state:
        state.save(attrs.evolve(progress(1, 10, 10, {}), ahead=ahead))
        with pytest.raises(UnicodeEncodeError):
            state.save(progress(1, 20, 20, {("\udc80", 0): at(1)}))
        state.save(progress(1, 20, 20, {}))
        assert state._file._db is not None
        assert state._file._db.execute("SELECT count(*) FROM ahead").fetchone() == (0,)
