"""The demo in lines: progress where there is no terminal, and the summary at the end."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gapconn.demo.checks import Check
from gapconn.demo.ledger import Ledger, Level
from gapconn.selfcheck import STREAM

PROGRESS_INTERVAL_S: Final = 1.0
RANGES_SHOWN: Final = 8


class Progress:
    """Lines of the same facts as the picture: one a second, and one for each thing that happens."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self._told = 0
        self._next_s = 0.0
        self._phase: object = None

    def show(self) -> None:
        """Print what is new."""
        ledger = self._ledger
        if ledger.phase is not self._phase:
            self._phase = ledger.phase
            self._print(
                f"{ledger.now_s:5.1f} s  {ledger.phase.number}. {ledger.phase.title.upper()}: {ledger.phase.story}",
            )
        new = ledger.news_count - self._told
        self._told = ledger.news_count
        for item in list(ledger.news)[-new:] if new else []:
            self._print(f"{item.at_s:5.1f} s     {'! ' if item.level is Level.ALARM else ''}{item.text}")
        if ledger.now_s >= self._next_s and not ledger.finished:
            self._next_s = ledger.now_s + PROGRESS_INTERVAL_S
            self._print(self._figures())

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _figures(self) -> str:
        ledger, gap, egress = self._ledger, self._ledger.gap, self._ledger.egress
        rate = ledger.rates[-1].arrived_bps / 1e6 if ledger.rates else 0.0
        return (
            f"{ledger.now_s:5.1f} s     sent {ledger.sent_records:,} records, arrived {ledger.arrived_records:,}, "
            f"lost {egress.records_lost:,}, {rate:.0f} Mbit/s; the gap dropped {gap.dropped:,}, flipped "
            f"{gap.corrupted:,}, doubled {gap.duplicated:,}, reordered {gap.reordered:,}; the egress missed "
            f"{egress.datagrams_missed:,}"
        )


def print_summary(console: Console, ledger: Ledger, checks: list[Check]) -> None:
    """What was sent, what became of it, and whether the figures add up."""
    _print(console, "", "")
    _print(console, "What became of it", "", style="bold")
    for session in ledger.sessions:
        lost = session.lost_records.count
        _print(
            console,
            f"  session {session.number}: ",
            f"{session.settled_records:,} records sent, {session.settled_records - lost:,} arrived, "
            f"{lost:,} lost in {session.lost_messages.count:,} messages",
        )
        if lost:
            _print(console, "    lost messages: ", session.lost_messages.text(RANGES_SHOWN), style="dim")
            _print(console, "    lost records:  ", session.lost_records.text(RANGES_SHOWN), style="dim")
    for (stream, partition), ranges in sorted(ledger.missing.items()):
        if stream == STREAM:  # its positions say no more than the record numbers of each session, shown above
            continue
        _print(console, f"  lost offsets of {stream}/{partition}: ", ranges.text(RANGES_SHOWN), style="dim")
    for alarm in ledger.alarms:
        end = "and it still stands"
        if alarm.cleared_at_s is not None:
            end = f"cleared {alarm.cleared_at_s - alarm.raised_at_s:.1f} s later"
        _print(console, "  alarm: ", f"{alarm.name}, raised at {alarm.raised_at_s:.1f} s ({alarm.phase.title}), {end}")
    _print(console, "", "")
    _print(console, "Do the figures add up?", "", style="bold")
    for check in checks:
        mark = "yes" if check.holds else "NO "
        _print(console, f"  {mark}  ", check.text, mark_style="green" if check.holds else "bold red")


def _print(console: Console, mark: str, text: str, *, style: str = "", mark_style: str = "") -> None:
    """One entry: on a terminal, what is too long for a line goes on under its beginning."""
    if not console.is_terminal:
        console.print(mark + text, highlight=False, markup=False, soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(width=len(mark), no_wrap=True)
    grid.add_column()
    grid.add_row(Text(mark, mark_style or style), Text(text, style))
    console.print(grid)
