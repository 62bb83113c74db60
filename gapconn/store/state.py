"""What each end of a link remembers over a restart: the ingress its epochs, the egress how far it delivered.

All calls block for a disk write or two: the services make them in a thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs
import msgspec

from gapconn.errors import LinkError
from gapconn.pauses import Hold
from gapconn.protocol.envelope import Run
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.reassembler import Ahead
from gapconn.store.database import StateFile
from gapconn.store.journal import Changes, GapFile

U64_MAX: Final = 2**64 - 1
POSITIONS_MAX: Final = 100_000
"""Positions kept by an egress. Beyond it the ones that were updated longest ago are forgotten."""

# Numbers are stored as text: epochs and positions go beyond SQLite's signed 64 bits.
_HOLD_TABLE: Final = """CREATE TABLE IF NOT EXISTS hold(
    owner TEXT PRIMARY KEY, reason TEXT NOT NULL, since_s REAL NOT NULL, renewed_s REAL NOT NULL
)"""
_INGRESS_TABLES: Final = ("CREATE TABLE session(last_epoch TEXT NOT NULL)", _HOLD_TABLE)
_EGRESS_TABLES: Final = (
    """CREATE TABLE progress(
        epoch TEXT NOT NULL,
        next_message TEXT NOT NULL,
        next_record TEXT NOT NULL,
        messages_known TEXT NOT NULL,
        records_known TEXT NOT NULL,
        ended TEXT NOT NULL
    )""",
    # Replacing a row gives it the highest `updated` yet: the lowest is the position updated longest ago.
    """CREATE TABLE position(
        updated INTEGER PRIMARY KEY,
        stream TEXT NOT NULL,
        partition TEXT NOT NULL,
        epoch TEXT NOT NULL,
        chain TEXT NOT NULL,
        position TEXT NOT NULL,
        UNIQUE(stream, partition)
    )""",
)


# Earlier versions made no such table, and do not look at it.
_AHEAD_TABLE: Final = """CREATE TABLE IF NOT EXISTS ahead(
    epoch TEXT NOT NULL,
    number TEXT NOT NULL,
    first_record TEXT NOT NULL,
    record_count TEXT NOT NULL,
    runs BLOB NOT NULL,
    PRIMARY KEY(epoch, number)
)"""
_encode_runs: Final = msgspec.msgpack.Encoder().encode
_decode_runs: Final = msgspec.msgpack.Decoder(tuple[Run, ...]).decode


class IngressState:
    """The epochs of one link's ingress. Made by `open`; holds the link's lock until `close`."""

    def __init__(self, file: StateFile) -> None:
        self._file = file

    @classmethod
    def open(cls, directory: Path, link: str, link_id: int) -> Self:
        """Lock and open the state of this link's ingress; the first time, make it.

        Raises:
            LinkError: another ingress of the link runs on this host (R1), or the state cannot be used: the message
                names the file and says what to do. Nothing is ever started anew in silence.
        """
        return cls(
            StateFile(
                directory,
                link=link,
                link_id=link_id,
                role="ingress",
                tables=_INGRESS_TABLES,
                synchronous="FULL",
                when_lost="an ingress without stored state announces itself for the interruption timeout before it"
                " sends data",
            )
        )

    def begin_session(self, clock_epoch: int) -> tuple[int, int]:
        """Choose the epoch of a new session: above every earlier one, also when the clock stepped back.

        It is on disk when this returns.

        Args:
            clock_epoch: The epoch that the clock proposes, 0 to 2**64-1.

        Returns:
            The new epoch, and the one before it: 0 when nothing was stored.

        Raises:
            LinkError: the state cannot be read or written, or there is no higher epoch.
        """
        if not 0 <= clock_epoch <= U64_MAX:
            raise ValueError(f"clock_epoch must be 0 to 2**64-1, not {clock_epoch}")
        with self._file.transaction("saved") as db:
            row = db.execute("SELECT last_epoch FROM session").fetchone()
            previous = 0 if row is None else _number(self._file, row[0])
            epoch = max(previous + 1, clock_epoch)
            if epoch > U64_MAX:
                raise LinkError(
                    f"{self._file.path}: the last epoch was {previous}, and there is no higher one. Give the link a new"
                    " id, and move the file away on both ends"
                )
            db.execute("DELETE FROM session")
            db.execute("INSERT INTO session VALUES (?)", (str(epoch),))
        return epoch, previous

    def holds(self) -> list[Hold]:
        """Who held the ingress when it ended."""
        with self._file.transaction("read") as db:
            db.execute(_HOLD_TABLE)  # the file may be of a release before there were holds
            rows = db.execute("SELECT owner, reason, since_s, renewed_s FROM hold").fetchall()
        return [Hold(owner=owner, reason=reason, since_s=s, renewed_s=r) for owner, reason, s, r in rows]

    def save_holds(self, holds: Sequence[Hold]) -> None:
        """Store who holds it now, instead of what was stored.

        Raises:
            LinkError: the state cannot be written.
        """
        with self._file.transaction("saved") as db:
            db.execute("DELETE FROM hold")
            db.executemany("INSERT INTO hold VALUES (?, ?, ?, ?)", [attrs.astuple(hold) for hold in holds])

    def close(self) -> None:
        """Let go of the file and the lock. May be called again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EgressState:
    """How far one link's egress delivered. Made by `open`; holds the link's lock until `close`.

    What `save` stored survives the end of the process in any way; a power cut may take the last saves back, never a
    part of one.
    """

    def __init__(self, file: StateFile, gaps: GapFile) -> None:
        self._file = file
        self._gaps = gaps
        self.journal = gaps.load()
        """What is missing: changed in memory, and stored by `save`."""
        with file.transaction("saved") as db:
            db.execute(_AHEAD_TABLE)
            self._ahead: set[tuple[str, str]] = set(db.execute("SELECT epoch, number FROM ahead").fetchall())
            """What is stored of messages that were delivered ahead: epoch and number."""
        with file.transaction("read") as db:
            (self._positions_at_most,) = db.execute("SELECT count(*) FROM position").fetchone()

    @classmethod
    def open(cls, directory: Path, link: str, link_id: int) -> Self:
        """Lock and open the state of this link's egress; the first time, make it.

        Raises:
            LinkError: another egress of the link runs on this host (R1), or the state cannot be used: the message
                names the file and says what to do. Nothing is ever started anew in silence.
        """
        file = StateFile(
            directory,
            link=link,
            link_id=link_id,
            role="egress",
            tables=_EGRESS_TABLES,
            synchronous="NORMAL",
            when_lost="an egress without stored state may deliver again what it delivered before",
        )
        gaps: GapFile | None = None
        try:
            gaps = GapFile.open(directory, link, link_id)
            state = cls(file, gaps)
        except BaseException:
            if gaps is not None:
                gaps.close()
            file.close()
            raise
        return state

    def load(self) -> Progress | None:
        """What was saved last; None when nothing was saved yet.

        Raises:
            LinkError: the state cannot be read.
        """
        with self._file.transaction("read") as db:
            row = db.execute(
                "SELECT epoch, next_message, next_record, messages_known, records_known, ended FROM progress"
            ).fetchone()
            if row is None:
                return None
            rows = db.execute(
                "SELECT stream, partition, epoch, chain, position FROM position ORDER BY updated"
            ).fetchall()
            ahead_rows = db.execute(
                "SELECT number, first_record, record_count, runs FROM ahead WHERE epoch = ?", (row[0],)
            ).fetchall()
        epoch, next_message, next_record, messages_known, records_known, ended = (
            _number(self._file, text) for text in row
        )
        return Progress(
            epoch=epoch,
            next_message=next_message,
            next_record=next_record,
            messages_known=messages_known,
            records_known=records_known,
            ended=bool(ended),
            positions={
                (stream, _number(self._file, partition)): Standing(*(_number(self._file, text) for text in standing))
                for stream, partition, *standing in rows
            },
            ahead=tuple(
                sorted(
                    (self._ahead_of(each) for each in ahead_rows if _number(self._file, each[0]) >= next_message),
                    key=lambda ahead: ahead.number,
                )
            ),
        )

    def _ahead_of(self, row: tuple[str, str, str, bytes]) -> Ahead:
        number, first_record, record_count = (_number(self._file, text) for text in row[:3])
        try:
            runs = _decode_runs(row[3])
        except msgspec.DecodeError as error:
            raise self._file.damaged(f"positions cannot be read: {error}") from error
        return Ahead(number=number, first_record=first_record, record_count=record_count, runs=runs)

    def save(self, progress: Progress | None, gaps: Changes | None = None) -> None:
        """Store first what is missing, then the progress behind it (GC-RPR-1), each in one transaction.

        Args:
            progress: Its positions are those that changed since the last save; None if nothing did.
            gaps: What changed in the journal; None if nothing did.

        Raises:
            StateStuckError: the state cannot be written now. What was given is not stored: give it again with the
                next call.
            LinkError: the state is damaged.
        """
        if gaps is not None:
            self._gaps.save(gaps)
        if progress is not None:
            self._save_progress(progress)

    def wishes(self) -> list[tuple[int, list[int], str]]:
        """What `gapconn gaps close` asks of an egress that runs: number of the wish, those of the entries, reason."""
        return self._gaps.wishes()

    def _save_progress(self, progress: Progress) -> None:
        with self._file.transaction("saved") as db:
            db.execute("DELETE FROM progress")
            numbers = (
                progress.epoch,
                progress.next_message,
                progress.next_record,
                progress.messages_known,
                progress.records_known,
                int(progress.ended),
            )
            db.execute("INSERT INTO progress VALUES (?, ?, ?, ?, ?, ?)", tuple(map(str, numbers)))
            db.executemany(
                "INSERT OR REPLACE INTO position(stream, partition, epoch, chain, position) VALUES (?, ?, ?, ?, ?)",
                (
                    (stream, str(partition), *map(str, standing))
                    for (stream, partition), standing in progress.positions.items()
                ),
            )
            ahead = self._save_ahead(db, progress)
            # Counting is a walk over the table, so it waits until there may be too many.
            at_most = self._positions_at_most + len(progress.positions)
            if at_most > POSITIONS_MAX:
                db.execute(
                    "DELETE FROM position WHERE updated <="
                    " (SELECT updated FROM position ORDER BY updated DESC LIMIT 1 OFFSET ?)",
                    (POSITIONS_MAX,),
                )
                (at_most,) = db.execute("SELECT count(*) FROM position").fetchone()
        self._positions_at_most, self._ahead = at_most, ahead

    def _save_ahead(self, db: sqlite3.Connection, progress: Progress) -> set[tuple[str, str]]:
        """Add what was delivered ahead since the last call; take out what has had its turn. What is there then."""
        kept = {
            (epoch, number)
            for epoch, number in self._ahead
            if int(epoch) == progress.epoch and int(number) >= progress.next_message
        }
        db.executemany("DELETE FROM ahead WHERE epoch = ? AND number = ?", self._ahead - kept)
        rows = [
            (str(progress.epoch), str(a.number), str(a.first_record), str(a.record_count), _encode_runs(a.runs))
            for a in progress.ahead
        ]
        db.executemany("INSERT OR REPLACE INTO ahead VALUES (?, ?, ?, ?, ?)", rows)
        return kept | {(row[0], row[1]) for row in rows}

    def close(self) -> None:
        """Write everything into the files; let go of them and of the lock. May be called again."""
        try:
            self._gaps.close()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(file: StateFile, text: str) -> int:
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise file.damaged(f"{text!r} is not a number") from error
