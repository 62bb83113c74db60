"""`gapconn gaps` and `gapconn resend` as an operator types them, while no end runs."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gapconn.bundle import read_bundle
from gapconn.cli import main
from gapconn.gaps import milliseconds, report, summary, table, wanted_offsets
from gapconn.journal import Entry
from gapconn.protocol.envelope import Span
from gapconn.protocol.events import MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.registry import LossCause
from gapconn.ranges import RangeSet
from gapconn.sources.kafka_offsets import resend_command
from gapconn.store.journal import Changes, GapFile
from gapconn.store.resends import Between, ResendFile, ResendProgress, Wanted
from gapconn.store.state import EgressState

LINK_ID = 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pair.toml"
    path.write_text(
        f'[link]\nname = "orders"\nid = {LINK_ID}\naddress = "127.0.0.1:7400"\nstate_directory = "{tmp_path}/state"\n'
        '[source]\ntype = "kafka"\nbootstrap_servers = "127.0.0.1:1"\ntopics = ["t"]\ngroup_id = "g"\n'
        '[sink]\ntype = "kafka"\nbootstrap_servers = "127.0.0.1:1"\n'
    )
    return path


def run(*arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=typed)


@pytest.fixture
def journaled(file: Path) -> Path:
    """The file of a link whose journal has two open entries."""
    with EgressState.open(file.parent / "state", "orders", LINK_ID) as state:
        journal = state.journal
        journal.happened(MessagesLost(epoch=5, first=3, last=4, cause=LossCause.GAP), 1_000)
        journal.happened(RecordsLost(epoch=5, first=0, count=12, cause=LossCause.GAP), 1_000)
        for first in (10, 20, 30, 40, 50, 60):
            journal.happened(RecordsMissing(epoch=5, stream="t", partition=1, first=first, last=first + 1), 1_000)
        journal.happened(MessagesLost(epoch=5, first=9, last=9, cause=LossCause.OVERFLOW), 99_000)
        state.save(None, Changes.of(journal))
    return file


def test_a_journal_is_listed_for_people_programs_and_spreadsheets(journaled: Path) -> None:
    shown = run("gaps", "list", journaled)
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [
        "1  1970-01-01 00:00:01Z  gap  open, 12 records, messages 3-4 of session 5",
        "     missing  t/1  10-11, 20-21, 30-31, 40-41 and 2 more",
        "2  1970-01-01 00:01:39Z  overflow  open, messages 9 of session 5",
        "     it is not known which records were in these messages",
        "2 open",
    ]
    entries = json.loads(run("gaps", "list", journaled, "--json").stdout)
    assert [entry["number"] for entry in entries] == [1, 2]
    assert entries[0]["missing"][0]["ranges"][-1] == [60, 61]
    rows = list(csv.DictReader(run("gaps", "list", journaled, "--csv").stdout.splitlines()))
    assert [(row["number"], row["kind"], row["first"]) for row in rows][:2] == [
        ("1", "message", "3"),
        ("1", "missing", "10"),
    ]
    assert len(rows) == 8


def test_messages_of_which_nothing_is_known_are_listed_with_their_number(file: Path) -> None:
    with EgressState.open(file.parent / "state", "orders", LINK_ID) as state:
        state.journal.unidentified(3, 5, LossCause.DAMAGED, 1_000)
        state.journal.unidentified(1, 0, LossCause.DAMAGED, 1_000)
        state.save(None, Changes.of(state.journal))
    assert run("gaps", "list", file).output.splitlines() == [
        "1  1970-01-01 00:00:01Z  damaged  open, 3 messages of session 5 of which the numbers are not known",
        "     it is not known which records were in these messages",
        "2  1970-01-01 00:00:01Z  damaged  open, 1 messages of which the numbers are not known",
        "     it is not known which records were in these messages",
        "2 open",
    ]
    assert [each["messages_unidentified"] for each in json.loads(run("gaps", "list", file, "--json").stdout)] == [3, 1]


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_is_exported_can_be_read_again(journaled: Path, form: str) -> None:
    shown = run("gaps", "export", journaled, "--format", form)
    assert shown.exit_code == 0
    spans = [Span("t", 1, first, first + 1) for first in (10, 20, 30, 40, 50, 60)]
    assert read_bundle(shown.stdout).spans == spans
    output = journaled.with_name("gaps.json" if form == "json" else "gaps.txt")
    assert run("gaps", "export", journaled, "-o", output).exit_code == 0
    assert read_bundle(output.read_text()).spans == spans
    assert output.read_text().startswith("{" if form == "json" else "gapconn gaps of link orders, ")
    assert not read_bundle(run("gaps", "export", journaled, 2, "--format", form).stdout).spans


def test_a_qr_code_is_shown_or_written(journaled: Path) -> None:
    shown = run("gaps", "export", journaled, "--format", "qr")
    assert shown.exit_code == 0
    assert len({len(line) for line in shown.stdout.splitlines() if line}) == 1
    for suffix, beginning in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        output = journaled.with_name(f"gaps.{suffix}")
        assert run("gaps", "export", journaled, "-o", output).exit_code == 0
        assert output.read_bytes().startswith(beginning)
    refused = run("gaps", "export", journaled, "--format", "qr", "-o", journaled.with_name("gaps.doc"))
    assert (refused.exit_code, "a .png or an .svg" in refused.stderr) == (2, True)


def test_a_journal_too_large_for_a_qr_code_is_refused(file: Path) -> None:
    with EgressState.open(file.parent / "state", "orders", LINK_ID) as state:
        for n in range(2_000):
            missing = RecordsMissing(epoch=n % 40, stream="t", partition=n, first=n**3, last=n**3 + n)
            state.journal.happened(missing, n)
        state.save(None, Changes.of(state.journal))
    refused = run("gaps", "export", file, "--format", "qr")
    assert (refused.exit_code, "too many for one QR code" in refused.stderr) == (1, True)


def test_entries_are_closed_with_a_reason(journaled: Path) -> None:
    closed = run("gaps", "close", journaled, 1, "--reason", "sent by mail")
    assert (closed.exit_code, closed.output) == (0, "1  by_hand\n")
    shown = run("gaps", "list", journaled, "--all")
    assert "     reason: sent by mail" in shown.output.splitlines()
    assert run("gaps", "close", journaled, "--all", "--reason", "none").output == "2  by_hand\n"
    assert run("gaps", "list", journaled).output == "0 open\n"
    with GapFile.open(journaled.parent / "state", "orders", LINK_ID) as gaps:
        assert not gaps.wishes()
        assert not gaps.load().missing()


def test_what_cannot_be_closed_is_said(journaled: Path) -> None:
    assert run("gaps", "close", journaled, 1).exit_code == 2
    assert "name the entries" in run("gaps", "close", journaled, "--reason", "x").stderr
    assert "no entry 8, 9" in run("gaps", "close", journaled, 9, 1, 8, "--reason", "x").stderr
    assert "2 open" in run("gaps", "list", journaled).output


def test_without_a_journal_it_says_where_it_looked(file: Path) -> None:
    refused = run("gaps", "list", file)
    assert refused.exit_code == 1
    assert str(file.parent / "state" / "orders.gaps.sqlite") in refused.stderr
    assert not (file.parent / "state").exists(), "looking makes nothing"


def test_a_list_of_another_link_is_refused(journaled: Path) -> None:
    bundle = run("gaps", "export", journaled).stdout.replace('"link_id": 7', '"link_id": 8', 1)
    refused = run("resend", journaled, "--gaps", "-", typed=bundle)
    assert refused.exit_code == 1
    assert "this list is of link 'orders' (id 8)" in refused.stderr
    wrong = run("resend", journaled, "--gaps", "-", typed="1: ABC")
    assert (wrong.exit_code, wrong.stderr.startswith("error: line 1: its check")) == (2, True)


@pytest.mark.parametrize("arguments", [
    (), ("--topic", "t"), ("--topic", "t", "--from", "2026-01-01"), ("--gaps", "-", "--topic", "t"),
    ("--topic", "t", "--from", "yesterday", "--to", "2026-01-01"),
    ("--topic", "t", "--partition", "0"), ("--topic", "t", "--offsets", "1-2"),
    ("--partition", "0", "--offsets", "1-2"),
    ("--topic", "t", "--partition", "0", "--offsets", "1-2", "--to", "2026-01-01"),
    *(("--topic", "t", "--partition", "0", "--offsets", wrong) for wrong in ("2-1", "1-", "-1", "a", "1-2-3", "")),
])  # fmt: skip
def test_what_is_to_be_sent_must_be_said(file: Path, arguments: tuple[str, ...]) -> None:
    assert run("resend", file, *arguments, typed="").exit_code == 2
    assert not (file.parent / "state" / "orders.resend.sqlite").exists()


@pytest.mark.parametrize(("offsets", "first", "last"), [("1200-1450", 1200, 1450), ("7", 7, 7)])
def test_offsets_of_a_partition_can_be_asked_for(offsets: str, first: int, last: int) -> None:
    wanted = wanted_offsets("orders", 3, offsets, again=True)
    assert wanted == Wanted(spans=[Span("orders", 3, first, last)], again=True)


def test_what_an_ingress_says_is_to_be_typed_is_understood(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent here: no ingress runs, and it is not let run."""
    monkeypatch.setattr("gapconn.commands.gaps._resend_here", lambda pair: None)
    span = Span("orders", 3, 1200, 1450)
    said = shlex.split(resend_command(span).replace("pair.toml", str(file)))
    assert said[0] == "gapconn"
    assert "waiting" in run(*said[1:]).output
    with ResendFile.open(file.parent / "state", "orders", LINK_ID) as requests:
        assert requests.next() == (1, Wanted(spans=[span], again=True))


def test_times_without_a_zone_are_utc() -> None:
    assert milliseconds("1970-01-01T00:00:01") == milliseconds("1970-01-01T01:00:01+01:00") == 1_000


def test_progress_in_words() -> None:
    progress = ResendProgress(
        state="failed", records=5, positions=8, positions_wanted=9, gone=[("t", 0, 1, 3, "deleted")], problems=["why"]
    )
    assert summary(progress) == "failed, 8 of 9 positions settled, 5 records sent, 3 positions gone"
    assert report(progress)[1:] == ["gone: t/0 1-3: deleted", "not sent: why"]


def test_a_stream_of_bytes_is_shown_without_a_partition() -> None:
    entry = Entry(
        number=1, epoch=0, cause="hole", at_ms=0, last_at_ms=0, missing={("a/b.txt", None): RangeSet([(5, 9)])}
    )
    assert table([entry])[1] == "     missing  a/b.txt  5-9"


def test_requests_wait_are_done_in_order_and_forgotten_late(tmp_path: Path) -> None:
    with ResendFile.open(tmp_path, "orders", LINK_ID) as requests:
        assert requests.next() is None
        spans, between = [Span("t", 0, 1, 3), Span("größer", 7, 0, 2**63)], Between(stream="t", from_ms=1, to_ms=2)
        first = requests.add(Wanted(spans=spans, again=True))
        second = requests.add(Wanted(between=between))
        assert requests.next() == (first, Wanted(spans=spans, again=True))
        requests.note(first, ResendProgress(state="running", records=3))
        assert requests.next() == (first, Wanted(spans=spans, again=True)), "an ingress was killed: once more"
        done = ResendProgress(state="done", records=3, gone=[("t", 0, 1, 2, "why")], problems=["p"])
        requests.note(first, done)
        assert requests.progress(first) == done
        assert requests.next() == (second, Wanted(spans=[], between=between))
        for _ in range(101):
            last = requests.add(Wanted())
            requests.note(last, ResendProgress(state="failed"))
        with pytest.raises(Exception, match="cannot be read"):
            requests.progress(first)
        assert requests.next() == (second, Wanted(spans=[], between=between)), "only finished ones are forgotten"
