"""The gap journal on disk: the file `{link}.gaps.sqlite` beside the egress's state.

The egress writes it; anybody may read it meanwhile (`gapconn gaps list`). Who wants an entry closed while an egress
runs leaves a wish, which the egress takes up: so the journal has one writer, and memory and disk never disagree.

All calls block for a disk write or two: the services make them in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from gapconn.journal import Entry, Journal, Place
from gapconn.ranges import RangeSet
from gapconn.store.shared_file import SharedFile

_TABLES: Final = (
    "CREATE TABLE entry(number INTEGER PRIMARY KEY, facts TEXT NOT NULL)",
    "CREATE TABLE counter(next_number INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (1)",
    "CREATE TABLE wish(number INTEGER PRIMARY KEY AUTOINCREMENT, entries TEXT NOT NULL, reason TEXT NOT NULL)",
)


@attrs.frozen(kw_only=True)
class Changes:
    """What is to be stored of a journal. Made at once, so that it may be stored by another thread."""

    entries: list[tuple[int, str]]
    """Numbers, and the entries as text."""
    removed: list[int]
    next_number: int
    fulfilled: list[int]
    """Wishes that are done with this."""

    def give_back(self, journal: Journal) -> None:
        """They could not be stored: they are among the next ones."""
        journal.give_back((number for number, _ in self.entries), self.removed)

    @classmethod
    def of(cls, journal: Journal, fulfilled: Iterable[int] = ()) -> Changes | None:
        """What changed since the last call; None if nothing did."""
        changed, removed = journal.take()
        done = list(fulfilled)
        if not (changed or removed or done):
            return None
        return cls(
            entries=[(entry.number, json.dumps(facts(entry))) for entry in changed],
            removed=removed,
            next_number=journal.next_number,
            fulfilled=done,
        )


class GapFile(SharedFile):
    """The journal's file."""

    role = "gaps"
    tables = _TABLES
    when_lost = "what was missing until now is then not known any more"

    @staticmethod
    def path(directory: Path, link: str) -> Path:
        """Where the journal of this link is, if there is one."""
        return directory / f"{link}.gaps.sqlite"

    def load(self) -> Journal:
        """The journal as it was stored last."""
        with self._file.transaction("read") as db:
            rows = db.execute("SELECT facts FROM entry ORDER BY number").fetchall()
            counter = db.execute("SELECT next_number FROM counter").fetchone()
        try:
            return Journal([entry_of(json.loads(text)) for (text,) in rows], int(counter[0]))
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(f"an entry cannot be read: {error!r}") from error

    def save(self, changes: Changes) -> None:
        """Store these changes, in one transaction."""
        with self._file.transaction("saved") as db:
            db.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?)", changes.entries)
            db.executemany("DELETE FROM entry WHERE number = ?", ((number,) for number in changes.removed))
            db.execute("UPDATE counter SET next_number = ?", (changes.next_number,))
            db.executemany("DELETE FROM wish WHERE number = ?", ((number,) for number in changes.fulfilled))

    def wish(self, entries: Iterable[int], reason: str) -> int:
        """Ask the egress to close these entries; the number of the wish."""
        with self._file.transaction("saved") as db:
            row = db.execute("INSERT INTO wish(entries, reason) VALUES (?, ?)", (json.dumps(list(entries)), reason))
        return row.lastrowid or 0

    def wishes(self) -> list[tuple[int, list[int], str]]:
        """What is asked for: number of the wish, numbers of the entries, reason."""
        with self._file.transaction("read") as db:
            rows = db.execute("SELECT number, entries, reason FROM wish ORDER BY number").fetchall()
        try:
            return [(number, [int(each) for each in json.loads(text)], str(reason)) for number, text, reason in rows]
        except (ValueError, TypeError) as error:
            raise self._file.damaged(f"a wish cannot be read: {error!r}") from error


def facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it; also what `gapconn gaps list --json` prints."""
    return {
        "number": entry.number,
        "state": entry.outcome,
        "epoch": entry.epoch,
        "cause": entry.cause,
        "at_ms": entry.at_ms,
        "last_at_ms": entry.last_at_ms,
        "closed_ms": entry.closed_ms,
        "reason": entry.reason,
        "records": entry.records,
        "messages": [list(each) for each in entry.messages],
        "messages_unidentified": entry.messages_unidentified,
        "late": [list(each) for each in entry.late],
        "messages_gone": [list(each) for each in entry.messages_gone],
        "missing": _places(entry.missing),
        "repaired": _places(entry.repaired),
        "gone": _places(entry.gone),
    }


def entry_of(given: Mapping[str, Any]) -> Entry:
    """The entry of these facts.

    Raises:
        KeyError, TypeError, ValueError: they are not those of an entry.
    """
    return Entry(
        number=int(given["number"]),
        epoch=int(given["epoch"]),
        cause=str(given["cause"]),
        at_ms=int(given["at_ms"]),
        last_at_ms=int(given["last_at_ms"]),
        records=int(given["records"]),
        messages=_ranges(given["messages"]),
        messages_unidentified=int(given.get("messages_unidentified", 0)),
        late=_ranges(given.get("late", ())),  # older versions do not know it
        messages_gone=_ranges(given.get("messages_gone", ())),
        missing=_by_place(given["missing"]),
        repaired=_by_place(given["repaired"]),
        gone=_by_place(given["gone"]),
        reason=str(given["reason"]),
        closed_ms=None if given["closed_ms"] is None else int(given["closed_ms"]),
        outcome=str(given["state"]),
    )


def _places(places: Mapping[Place, RangeSet]) -> list[dict[str, Any]]:
    return [
        {"stream": stream, "partition": partition, "ranges": [list(each) for each in ranges]}
        for (stream, partition), ranges in places.items()
    ]


def _by_place(given: Iterable[Mapping[str, Any]]) -> dict[Place, RangeSet]:
    return {
        (str(each["stream"]), None if each["partition"] is None else int(each["partition"])): _ranges(each["ranges"])
        for each in given
    }


def _ranges(given: Iterable[Iterable[int]]) -> RangeSet:
    ranges = RangeSet()
    for first, last in given:
        if not 0 <= int(first) <= int(last):
            raise ValueError(f"no range: {first} to {last}")
        ranges.add(int(first), int(last))
    return ranges
