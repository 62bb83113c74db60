"""`gapconn demo`: the real command with its real processes, and the parts that judge and show."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from rich.console import Console

from gapconn.demo import checks as demo_checks
from gapconn.demo import kafka as demo_kafka
from gapconn.demo.checks import check_path
from gapconn.demo.ledger import EgressFacts, GapFacts, Ledger, Ranges
from gapconn.demo.picture import picture
from gapconn.demo.plan import Phase, durations
from gapconn.demo.processes import DemoError, Process
from gapconn.demo.report import print_summary

TIME_LIMIT_S = 400


@contextmanager
def demo(directory: Path, *options: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """`gapconn demo` as a user runs it, with `directory` for its temporary files."""
    environ = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-W", "error", "-m", "gapconn", "demo", *options]
    with subprocess.Popen(command, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the demo never said {text!r}")


def processes_of(directory: Path) -> dict[str, int]:
    """Names and process ids of what a demo runs with files in `directory`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(str(directory) in word for word in words) or str(directory) in _working_directory(entry):
                found[words[3] if "gapconn" in words else "gap"] = int(entry.name)
    return found


def _working_directory(entry: Path) -> str:
    try:
        return str((entry / "cwd").readlink())
    except OSError:
        return ""


def assert_nothing_left(directory: Path) -> None:
    assert processes_of(directory) == {}
    assert list(directory.iterdir()) == []


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_data_crosses_the_lossy_gap_and_every_figure_adds_up(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds", "5") as process:
        said, errors = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, errors) == (0, ""), said
    assert "\x1b" not in said
    for phase in Phase:
        assert f"{phase.number}. {phase.title.upper()}" in said
    summary = said[said.index("What became of it") :]
    figures = re.search(r"yes  ([\d,]+) records sent = ([\d,]+) delivered and verified \+ ([\d,]+) lost", summary)
    assert figures is not None
    sent, delivered, lost = map(number, figures.groups())
    assert sent == delivered + lost
    assert delivered > lost > 0
    dropped, flipped, missed = map(
        number,
        re.findall(r"dropped ([\d,]+) datagrams and flipped a bit in ([\d,]+): the egress missed ([\d,]+)", summary)[0],
    )
    assert missed >= dropped + flipped > 0
    sessions = re.findall(r"session \d: ([\d,]+) records sent, ([\d,]+) arrived, ([\d,]+) lost in", summary)
    assert [sum(map(number, column)) for column in zip(*sessions, strict=True)] == [sent, delivered, lost]
    named = [
        pair for line in re.findall(r"lost records: +(.*)", summary) for pair in re.findall(r"([\d,]+)-([\d,]+)", line)
    ]
    assert 0 < sum(number(last) - number(first) + 1 for first, last in named) <= lost
    assert re.search(r"alarm: link interrupted, raised at [\d.]+ s \(ingress killed\), cleared [\d.]+ s later", summary)
    assert "  NO " not in summary
    assert "All figures add up" in summary
    assert_nothing_left(tmp_path)


def test_ctrl_c_at_a_terminal_ends_everything(tmp_path: Path) -> None:
    terminal, slave = pty.openpty()
    with demo(tmp_path, stdout=slave) as process:
        os.close(slave)
        shown = ""
        while "SIGKILL" not in shown and "session 1" not in shown:
            shown += os.read(terminal, 65536).decode(errors="replace")
        assert set(processes_of(tmp_path)) == {"ingress", "egress", "gap"}
        process.send_signal(signal.SIGINT)
        while True:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # its last writer has closed it
                break
        assert process.wait(TIME_LIMIT_S) == 1
    os.close(terminal)
    assert "interrupted: everything that was started has ended" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert_nothing_left(tmp_path)


def test_an_end_that_dies_by_itself_is_shown_with_its_last_words(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_for_line(process, "follows session 1")
        os.kill(processes_of(tmp_path)["egress"], signal.SIGKILL)
        _, errors = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 1
    assert "the egress ended by itself" in errors
    assert "  | session_followed level=info" in errors
    assert_nothing_left(tmp_path)


@pytest.mark.kafka
def test_topics_cross_and_are_removed_afterwards(tmp_path: Path, kafka_address: str) -> None:
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - only here

    with demo(tmp_path, "--seconds", "5", "--kafka", kafka_address) as process:
        said, errors = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, errors) == (0, ""), said
    figures = re.search(r"yes  ([\d,]+) records produced = ([\d,]+) delivered \+ ([\d,]+) lost", said)
    assert figures is not None
    produced, delivered, lost = map(number, figures.groups())
    assert produced == delivered + lost
    assert delivered > lost > 0
    assert re.search(r"yes  ([\d,]+) records in the target compared with what was produced", said)
    (name,) = set(re.findall(r"lost offsets of (gapconn-demo-\w+)-source/\d: ", said))
    topics = AdminClient({"bootstrap.servers": kafka_address}).list_topics(timeout=10).topics
    assert not [topic for topic in topics if topic.startswith(name)]
    assert_nothing_left(tmp_path)


async def test_a_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_kafka, "FIRST_ANSWER_TIMEOUT_S", 0.3)
    cargo = demo_kafka.KafkaCargo("127.0.0.1:1")
    with trio.fail_after(10):
        with pytest.raises(DemoError, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
            await cargo.prepare()
        assert await cargo.clean_up() is None


def test_what_is_no_address_of_a_broker_is_refused() -> None:
    with pytest.raises(DemoError, match=r"nonsense.*HOST:PORT"):
        demo_kafka.KafkaCargo("nonsense")


# -- The judgement: a demo that cannot fail proves nothing -------------------------------------------------------

GAP = GapFacts(received=1000, forwarded=985, dropped=20, duplicated=5, reordered=7, corrupted=3)
EGRESS = EgressFacts(datagrams=985, datagrams_missed=23, datagrams_doubled=5, datagrams_damaged=3)


def test_figures_that_agree_are_accepted() -> None:
    assert all(check.holds for check in check_path(GAP, EGRESS))


@pytest.mark.parametrize("name", ["datagrams", "datagrams_missed", "datagrams_doubled", "datagrams_damaged"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_every_figure_that_is_off_by_one_is_noticed(name: str, difference: int) -> None:
    wrong = attrs.evolve(EGRESS, **{name: getattr(EGRESS, name) + difference})
    assert not all(check.holds for check in check_path(GAP, wrong))


def test_what_a_kernel_dropped_is_allowed_for_and_told() -> None:
    egress = attrs.evolve(EGRESS, datagrams=970, datagrams_missed=38, kernel_drops=2)
    checks = check_path(GAP, egress)
    assert all(check.holds for check in checks)
    assert any("the kernel too dropped 2 buffers" in check.text for check in checks)
    assert not all(check.holds for check in check_path(GAP, attrs.evolve(egress, datagrams_missed=22)))


def ledger(**facts: Any) -> Ledger:
    return Ledger(title="a test", source="generated records", sink="verified one by one", seconds=20, **facts)


def entry(event: str, **facts: Any) -> dict[str, Any]:
    return {"timestamp": datetime.now(UTC).isoformat(), "level": "info", "event": event, **facts}


def test_an_alarm_stands_until_it_is_cleared() -> None:
    story = ledger(phase=Phase.KILLED)
    story.egress_said(entry("link_interrupted", epoch=7, silent_s=1.5))
    assert [check.holds for check in demo_checks.check_alarms(story)] == [True, False]
    assert story.standing_alarm is not None
    story.egress_said(entry("link_restored", epoch=8, silent_s=3.0))
    assert [check.holds for check in demo_checks.check_alarms(story)] == [True, True]
    assert story.standing_alarm is None


def test_an_alarm_that_was_not_raised_is_missed() -> None:
    story = ledger(phase=Phase.CLEAN)
    story.egress_said(entry("link_interrupted", epoch=0, silent_s=1.5))
    story.egress_said(entry("link_restored", epoch=7, silent_s=3.0))
    assert [check.holds for check in demo_checks.check_alarms(story)] == [False, True]


@pytest.mark.parametrize(
    ("pairs", "count", "text"),
    [
        ([], 0, ""),
        ([(5, 5)], 1, "5"),
        ([(1000, 1999), (2000, 2001)], 1002, "1,000-2,001"),
        ([(9, 12), (0, 3), (2, 5)], 10, "0-5, 9-12"),
        ([(0, 0), (2, 2), (4, 4), (6, 6)], 4, "0, 2, 4 and 1 more"),
    ],
)
def test_ranges(pairs: list[tuple[int, int]], count: int, text: str) -> None:
    ranges = Ranges()
    for pair in pairs:
        ranges.add([pair])
    assert (ranges.count, ranges.text(3)) == (count, text)
    at_once = Ranges()
    at_once.add(pairs)
    assert at_once == ranges


def test_a_short_demo_is_stretched_to_one_in_which_there_is_something_to_see() -> None:
    assert durations(-5) == durations(0)
    assert durations(0).lossy_s >= 1
    assert durations(20).lossy_s > durations(10).lossy_s


# -- What is shown ----------------------------------------------------------------------------------------------


def told(phase: Phase) -> Ledger:
    """A ledger in which much has happened."""
    story = ledger(phase=phase, ingress_life="killed", egress_life="running", gap=attrs.evolve(GAP, faults=True))
    status: dict[str, Any] = {
        "epoch": 7,
        "state": "following",
        "received": {"datagrams": 12_345_678, "bytes": 10**9, "records": 1_234_567},
        "missed": {"datagrams": 23, "messages": {"gap": 20}, "records": 300, "kernel_drops": 0,
                   "refused_messages": {}, "refused_records": 0},
        "dropped": {"duplicate": 5, "bad_check": 3},
        "duplicate_records": 0,
        "held": {"incomplete_messages": 0, "sink_messages": 0},
        "sink": {"verified": 1_234_567, "damaged": 0, "duplicates": 0, "reordered": 0, "missing": 300},
    }  # fmt: skip
    for _ in range(400):
        story.look({"epoch": 7, "state": "active", "sent": {"records": 1_234_567, "bytes": 10**9}}, status)
    story.egress_said(entry("session_followed", epoch=7, previous_epoch=0, reason="first heard"))
    story.egress_said(
        entry("messages_lost", epoch=7, cause="gap", count=40, ranges=[[2 * i, 2 * i] for i in range(40)])
    )
    story.egress_said(entry("records_lost", epoch=7, cause="gap", count=15, ranges=[[30, 44]]))
    story.egress_said(entry("link_interrupted", epoch=7, silent_s=1.5))
    for i in range(20):
        story.tell(f"{i} " + "a long line of news, " * 8)
    return story


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_picture_fits_the_terminal(phase: Phase, width: int) -> None:
    console = Console(width=width, height=24, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    console.print(picture(told(phase), console.width))
    lines = console.export_text().split("\n")
    assert len(lines) <= 24 + 1
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in (phase.title, phase.story, "1,234,567", "LINK INTERRUPTED", "copies thrown away", "reported lost"):
        assert part in text


def test_the_summary_names_losses_and_says_no_where_figures_disagree() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(console, told(Phase.STOP), check_path(GAP, attrs.evolve(EGRESS, datagrams_missed=22)))
    text = console.export_text()
    assert "lost records:  30-44" in text
    assert "0, 2, 4, 6, 8, 10, 12, 14 and 32 more" in text
    assert "alarm: link interrupted" in text
    assert "it still stands" in text
    assert "NO   the gap dropped 20 datagrams and flipped a bit in 3: the egress missed 22" in text


async def test_a_process_says_why_it_failed(tmp_path: Path) -> None:
    process = Process("egress", ["gapconn", "egress", str(tmp_path / "missing.toml")], tmp_path)
    with trio.fail_after(TIME_LIMIT_S):
        await process.start()
        await process.ended()
        assert process.hear() == []
        assert "there is no such file" in process.tail()
        await process.end()
