"""The journal on disk: whole, durable, read by others while it is written, refused when it cannot be believed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.errors import LinkError
from gapconn.journal import Entry, Journal
from gapconn.protocol.events import RecordsMissing
from gapconn.ranges import RangeSet
from gapconn.store.journal import Changes, GapFile, entry_of, facts


def missing(first: int, last: int, epoch: int = 5) -> RecordsMissing:
    return RecordsMissing(epoch=epoch, stream="t", partition=0, first=first, last=last)


range_sets = st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 9))).map(
    lambda pairs: RangeSet((first, first + more) for first, more in pairs)
)
places = st.dictionaries(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.integers(0, 2**31)),
    range_sets.filter(bool),
)
entries = st.builds(
    Entry,
    number=st.integers(1, 2**62),
    epoch=st.integers(0, 2**64 - 1),
    cause=st.text(st.characters(exclude_categories=["Cs"])),
    at_ms=st.integers(0, 2**62),
    last_at_ms=st.integers(0, 2**62),
    records=st.integers(0, 2**64),
    messages=range_sets,
    missing=places,
    repaired=places,
    gone=places,
    reason=st.text(st.characters(exclude_categories=["Cs"])),
    closed_ms=st.none() | st.integers(0, 2**62),
    outcome=st.sampled_from(["open", "repaired", "by_hand"]),
)


@given(entries)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert entry_of(json.loads(json.dumps(facts(entry)))) == entry


def test_changes_are_stored_and_numbers_are_not_used_again(tmp_path: Path) -> None:
    with GapFile.open(tmp_path, "orders", 7) as gaps:
        journal = gaps.load()
        assert list(journal) == []
        assert Changes.of(journal) is None
        journal.happened(missing(10, 19), 1_000)
        journal.happened(missing(5, 6, epoch=6), 1_000)
        changes = Changes.of(journal)
        assert changes is not None
        gaps.save(changes)
        assert Changes.of(journal) is None
    with GapFile.open(tmp_path, "orders", 7) as gaps:
        again = gaps.load()
        assert list(again) == list(journal)
        assert again.missing() == journal.missing()
        assert again.next_number == 3
        gaps.save(Changes(entries=[], removed=[2], next_number=3, fulfilled=[]))
        last = gaps.load()
        assert ([entry.number for entry in last], last.next_number) == ([1], 3)


def test_wishes_wait_until_they_are_fulfilled(tmp_path: Path) -> None:
    with GapFile.open(tmp_path, "orders", 7) as egress, GapFile.open(tmp_path, "orders", 7) as operator:
        first, second = operator.wish([1, 2], "why"), operator.wish([3], "")
        assert egress.wishes() == [(first, [1, 2], "why"), (second, [3], "")]
        egress.save(Changes(entries=[], removed=[], next_number=1, fulfilled=[first]))
        assert operator.wishes() == [(second, [3], "")]


WRITE = """
import sys
from itertools import count
from pathlib import Path
from gapconn.protocol.events import RecordsMissing
from gapconn.store.journal import Changes, GapFile
gaps = GapFile.open(Path(sys.argv[1]), "orders", 7)
journal = gaps.load()
for n in count():
    journal.happened(RecordsMissing(epoch=n + 1, stream="t", partition=0, first=2 * n, last=2 * n), 0)
    gaps.save(Changes.of(journal))
    print(n + 1, flush=True)
"""


@pytest.mark.req("GC-RPR-1")
def test_what_a_killed_writer_stored_is_there_and_readers_see_it_meanwhile(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = 0
        for _ in range(30):
            said = int(child.stdout.readline())
            with GapFile.open(tmp_path, "orders", 7) as reader:
                assert reader.load().next_number > said, "while it is written"
        child.send_signal(signal.SIGKILL)
        said = max([said, *map(int, child.stdout.read().split("\n")[:-1])])
    with GapFile.open(tmp_path, "orders", 7) as gaps:
        journal: Journal = gaps.load()
    assert journal.next_number - 1 in (said, said + 1)
    assert all(entry.missing for entry in journal)


@pytest.mark.parametrize("sql", [
    "UPDATE entry SET facts = 'x'",
    "UPDATE entry SET facts = '{}'",
    "UPDATE entry SET facts = replace(facts, '[10, 19]', '[19, 10]')",
    "DELETE FROM counter",
])  # fmt: skip
def test_damage_is_refused_with_advice(tmp_path: Path, sql: str) -> None:
    with GapFile.open(tmp_path, "orders", 7) as gaps:
        journal = gaps.load()
        journal.happened(missing(10, 19), 1_000)
        changes = Changes.of(journal)
        assert changes is not None
        gaps.save(changes)
    with closing(sqlite3.connect(GapFile.path(tmp_path, "orders"))) as db, db:
        db.execute(sql)
    with GapFile.open(tmp_path, "orders", 7) as gaps, pytest.raises(LinkError, match=r"damaged.*move it away"):
        gaps.load()


def test_the_journal_of_another_link_is_refused(tmp_path: Path) -> None:
    GapFile.open(tmp_path, "orders", 7).close()
    with pytest.raises(LinkError, match="link id 7"):
        GapFile.open(tmp_path, "orders", 8)
