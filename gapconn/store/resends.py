"""What is to be sent again: the file `{link}.resend.sqlite` beside the ingress's state.

`gapconn resend` leaves a request in it; the ingress of the link, the only one that may send, takes it up and says how
far it is. A request that was not finished is done again from its beginning by the next ingress: the egress takes only
what it still misses.

All calls block for a disk write or two: the services make them in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import attrs

from gapconn.bundle import Lost
from gapconn.protocol.envelope import Span
from gapconn.store.shared_file import SharedFile

FINISHED_KEPT_MAX: Final = 100

_TABLES: Final = (
    "CREATE TABLE request(number INTEGER PRIMARY KEY AUTOINCREMENT, wanted TEXT NOT NULL, progress TEXT NOT NULL)",
)


@attrs.frozen(kw_only=True)
class Between:
    """Records by their time, in milliseconds since 1970."""

    stream: str
    from_ms: int
    to_ms: int
    """Excluded."""


@attrs.frozen(kw_only=True)
class Wanted:
    """What is to be sent again."""

    spans: Sequence[Span] = ()
    messages: Sequence[Lost] = ()
    between: Between | None = None
    again: bool = False
    """Deliver it also where the egress does not miss it."""


@attrs.frozen(kw_only=True)
class ResendProgress:
    """How far a request is."""

    state: str = "waiting"
    """`waiting`, `running`, `done`, or `failed`."""
    records: int = 0
    """Records handed to the network."""
    messages: int = 0
    positions: int = 0
    """Positions that are settled: sent, without a record, or gone."""
    positions_wanted: int = 0
    gone: Sequence[tuple[str, int, int, int, str]] = ()
    """Stream, partition, first, last, and why; the first hundred."""
    messages_wanted: int = 0
    messages_repeated: int = 0
    """Of the messages that are wanted, those that were sent again."""
    messages_gone: Sequence[tuple[int, int, int, str]] = ()
    """Session, first, last, and why; the first hundred."""
    problems: Sequence[str] = ()
    """What could neither be sent nor called gone, and why."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed")


class ResendFile(SharedFile):
    """The requests of a link."""

    role = "resend"
    tables = _TABLES
    when_lost = "requests that were not finished are forgotten"

    def add(self, wanted: Wanted) -> int:
        """Ask for this; the number of the request."""
        text = json.dumps(
            {
                "spans": [[s.stream, s.partition, s.first, s.last] for s in wanted.spans],
                "messages": [list(each) for each in wanted.messages],
                "between": attrs.asdict(wanted.between) if wanted.between else None,
                "again": wanted.again,
            }
        )
        with self._file.transaction("saved") as db:
            row = db.execute("INSERT INTO request(wanted, progress) VALUES (?, ?)", (text, _text_of(ResendProgress())))
            db.execute(
                "DELETE FROM request WHERE json_extract(progress, '$.state') IN ('done', 'failed') AND number <= ?",
                ((row.lastrowid or 0) - FINISHED_KEPT_MAX,),
            )
        return row.lastrowid or 0

    def next(self) -> tuple[int, Wanted] | None:
        """The oldest request that is not finished."""
        with self._file.transaction("read") as db:
            row = db.execute(
                "SELECT number, wanted FROM request WHERE json_extract(progress, '$.state') NOT IN ('done', 'failed')"
                " ORDER BY number LIMIT 1"
            ).fetchone()
        if row is None:
            return None
        try:
            given = json.loads(row[1])
            between = None if given["between"] is None else Between(**given["between"])
            spans = [Span(str(s), int(p), int(first), int(last)) for s, p, first, last in given["spans"]]
            messages = tuple(Lost(*(int(number) for number in each)) for each in given.get("messages", ()))
            return row[0], Wanted(spans=spans, messages=messages, between=between, again=bool(given["again"]))
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(f"a request cannot be read: {error!r}") from error

    def note(self, number: int, progress: ResendProgress) -> None:
        """Say how far a request is."""
        with self._file.transaction("saved") as db:
            db.execute("UPDATE request SET progress = ? WHERE number = ?", (_text_of(progress), number))

    def progress(self, number: int) -> ResendProgress:
        """How far a request is.

        Raises:
            LinkError: there is no such request any more, or the file cannot be read.
        """
        with self._file.transaction("read") as db:
            row = db.execute("SELECT progress FROM request WHERE number = ?", (number,)).fetchone()
        try:
            given: dict[str, Any] = json.loads(row[0])
            gone = [tuple(each) for each in given.pop("gone")]
            messages_gone = tuple(tuple(each) for each in given.pop("messages_gone", ()))
            return ResendProgress(**given, gone=gone, messages_gone=messages_gone)
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(f"request {number} cannot be read: {error!r}") from error


def _text_of(progress: ResendProgress) -> str:
    return json.dumps(attrs.asdict(progress))
