"""`gapconn gaps` and `gapconn resend`: what an operator sees of the journal, carries across, and has sent again."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import segno

from gapconn.bundle import COLUMNS, Bundle, as_code, as_json, as_lines, bundle_of, read_bundle, rows_of
from gapconn.config import Pair
from gapconn.errors import LinkError
from gapconn.journal import Entry, Place
from gapconn.protocol.envelope import Span
from gapconn.ranges import RangeSet
from gapconn.store.database import StateHeldError, held
from gapconn.store.journal import Changes, GapFile
from gapconn.store.resends import Between, ResendFile, ResendProgress, Wanted
from gapconn.store.state import EgressState

CLOSE_TIMEOUT_S: Final = 30.0
"""How long a running egress may take to close what it is asked to close; it looks twice a second."""
POLL_S: Final = 0.1
RANGES_SHOWN_MAX: Final = 4


def _directory(pair: Pair) -> Path:
    return Path(pair.link.state_directory)


def entries_of(pair: Pair, *, closed: bool) -> list[Entry]:
    """The journal of this link as it is stored, the oldest entry first; also while the egress runs.

    Raises:
        LinkError: it cannot be read, or there is none.
    """
    path = GapFile.path(_directory(pair), pair.link.name)
    if not path.exists():
        raise LinkError(
            f"{path}: there is no such file: on this host, no egress of link {pair.link.name!r} has ever run with this"
            " link.state_directory, or it runs as another user with another one"
        )
    with GapFile.open(_directory(pair), pair.link.name, pair.link.id) as gaps:
        journal = gaps.load()
    return [entry for entry in journal if closed or entry.open]


# What is printed


def table(entries: Sequence[Entry]) -> list[str]:
    """The entries for people."""
    lines = []
    for entry in entries:
        state = entry.outcome if entry.open or entry.closed_ms is None else f"{entry.outcome} {_time(entry.closed_ms)}"
        messages = f", messages {_ranges(entry.messages)} of session {entry.epoch}" if entry.messages else ""
        if entry.messages_unidentified:
            session = f" of session {entry.epoch}" if entry.epoch else ""
            messages = f", {entry.messages_unidentified} messages{session} of which the numbers are not known"
        records = f", {entry.records} records" if entry.records else ""
        lines.append(f"{entry.number}  {_time(entry.at_ms)}  {entry.cause}  {state}{records}{messages}")
        if entry.reason:
            lines.append(f"     reason: {entry.reason}")
        for word, places in (("missing", entry.missing), ("repaired", entry.repaired), ("gone", entry.gone)):
            lines += [f"     {word}  {_place(place)}  {_ranges(ranges)}" for place, ranges in places.items()]
        if entry.open and not entry.missing:
            lines.append("     it is not known which records were in these messages")
    return lines


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _place(place: Place) -> str:
    stream, partition = place
    return stream if partition is None else f"{stream}/{partition}"


def _ranges(ranges: RangeSet) -> str:
    words = [str(first) if first == last else f"{first}-{last}" for first, last in list(ranges)[:RANGES_SHOWN_MAX]]
    more = len(ranges) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def as_csv(entries: Iterable[Entry]) -> str:
    """The entries for spreadsheets: a row for each range."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(entries))
    return text.getvalue()


def exported(pair: Pair, entries: Sequence[Entry], form: str) -> str:
    """What is missing, to be carried to the source side: as `json`, or as `text` to be typed."""
    bundle = bundle_of(pair.link.name, pair.link.id, entries)
    if form == "json":
        return as_json(bundle, entries) + "\n"
    lines = as_lines(bundle)
    return "\n".join([f"gapconn gaps of link {pair.link.name}, {len(lines)} lines", *lines]) + "\n"


def qr_code(pair: Pair, entries: Sequence[Entry]) -> segno.QRCode:
    """The same as a picture.

    Raises:
        LinkError: it is too much for one.
    """
    code = as_code(bundle_of(pair.link.name, pair.link.id, entries))
    try:
        return segno.make_qr(code, error="l", boost_error=True)
    except segno.DataOverflowError as error:
        raise LinkError(
            f"{len(code)} characters are too many for one QR code: export fewer entries, or as text or JSON"
        ) from error


# Closing


def close_by_hand(pair: Pair, numbers: Sequence[int], reason: str) -> list[Entry]:
    """Close these entries, through the egress if it runs; the journal's entries of these numbers afterwards.

    Raises:
        LinkError: the journal cannot be used, or the egress does not answer.
    """
    link, directory = pair.link, _directory(pair)
    with GapFile.open(directory, link.name, link.id) as gaps:
        wish = gaps.wish(numbers, reason)
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while wish in {number for number, _, _ in gaps.wishes()}:
            if not held(directory, link=link.name, role="egress"):
                _close_at_rest(pair)
            elif time.monotonic() > deadline_s:
                raise LinkError(
                    f"the egress of link {link.name!r} runs, but has not closed them within {CLOSE_TIMEOUT_S:g} s; it"
                    " will when it can"
                )
            else:
                time.sleep(POLL_S)
        journal = gaps.load()
    return [entry for entry in journal if entry.number in set(numbers)]


def _close_at_rest(pair: Pair) -> None:
    """Do what an egress that runs would do; nothing if it has just been started, since then it does it itself."""
    try:
        state = EgressState.open(_directory(pair), pair.link.name, pair.link.id)
    except StateHeldError:
        return
    with state:
        done = []
        for number, entries, reason in state.wishes():
            state.journal.close_by_hand(entries, reason, time.time_ns() // 1_000_000)
            done.append(number)
        state.save(None, Changes.of(state.journal, done))


# Sending again


def wanted_of(pair: Pair, text: str, *, again: bool) -> Wanted:
    """What the list `text` asks for.

    Raises:
        BundleError: it is none.
        LinkError: it is of another link.
    """
    bundle: Bundle = read_bundle(text)
    if (bundle.link, bundle.link_id) != (pair.link.name, pair.link.id):
        raise LinkError(
            f"this list is of link {bundle.link!r} (id {bundle.link_id}), and not of link {pair.link.name!r} (id"
            f" {pair.link.id}): give the configuration of that link"
        )
    return Wanted(spans=bundle.spans, messages=bundle.messages, again=again)


def wanted_between(stream: str, from_ms: int, to_ms: int, *, again: bool) -> Wanted:
    """What these times ask for."""
    return Wanted(between=Between(stream=stream, from_ms=from_ms, to_ms=to_ms), again=again)


def wanted_offsets(stream: str, partition: int, offsets: str, *, again: bool) -> Wanted:
    """What these offsets of a partition ask for: `first-last`, or one alone.

    Raises:
        ValueError: they are none.
    """
    said = re.fullmatch(r"(\d+)(?:-(\d+))?", offsets)
    first, last = (int(said[1]), int(said[2] or said[1])) if said else (0, -1)
    if last < first or last >= 1 << 63:
        raise ValueError(f"got {offsets!r}, allowed: such as 1200-1450, the last included")
    return Wanted(spans=[Span(stream, partition, first, last)], again=again)


def ask(pair: Pair, wanted: Wanted) -> tuple[int, bool]:
    """Leave a request for the ingress of this link; its number, and whether an ingress runs on this host."""
    link, directory = pair.link, _directory(pair)
    with ResendFile.open(directory, link.name, link.id) as requests:
        return requests.add(wanted), held(directory, link=link.name, role="ingress")


def progress_of(pair: Pair, number: int) -> ResendProgress:
    """How far a request is."""
    with ResendFile.open(_directory(pair), pair.link.name, pair.link.id) as requests:
        return requests.progress(number)


def watch(pair: Pair, number: int, tell: Callable[[str], None]) -> ResendProgress:
    """Wait until the running ingress has done a request, and tell how far it is whenever that changes."""
    told = ""
    with ResendFile.open(_directory(pair), pair.link.name, pair.link.id) as requests:
        while True:
            progress = requests.progress(number)
            if progress.finished:
                return progress
            words = summary(progress)
            if words != told:
                tell(words)
                told = words
            time.sleep(POLL_S)


def summary(progress: ResendProgress) -> str:
    """How far a request is, in a line."""
    gone = sum(last - first + 1 for _, _, first, last, _ in progress.gone)
    words = [progress.state]
    if progress.positions_wanted:
        words.append(f"{progress.positions} of {progress.positions_wanted} positions settled")
    if progress.messages_wanted:
        words.append(f"{progress.messages_repeated} of {progress.messages_wanted} messages sent")
    else:
        words.append(f"{progress.records} records sent")
    if gone:
        words.append(f"{gone} positions gone")
    messages_gone = sum(last - first + 1 for _, first, last, _ in progress.messages_gone)
    if messages_gone:
        words.append(f"{messages_gone} messages gone")
    return ", ".join(words)


def report(progress: ResendProgress) -> list[str]:
    """What became of a request."""
    lines = [summary(progress)]
    lines += [
        f"gone: {stream}/{partition} {first}-{last}: {why}" for stream, partition, first, last, why in progress.gone
    ]
    lines += [
        f"gone: messages {first}-{last} of session {epoch}: {why}" for epoch, first, last, why in progress.messages_gone
    ]
    lines += [f"not sent: {problem}" for problem in progress.problems]
    return lines


def milliseconds(text: str) -> int:
    """A time in ISO 8601 as milliseconds since 1970; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    given = datetime.fromisoformat(text)
    if given.tzinfo is None:
        given = given.replace(tzinfo=UTC)
    return int(given.timestamp() * 1000)
