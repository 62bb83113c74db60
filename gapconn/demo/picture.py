"""The demo on a terminal: one picture, drawn again and again."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.align import Align
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gapconn.demo.ledger import Ledger, Level
from gapconn.demo.plan import Phase

WIDTH_MAX: Final = 110
NEWS_SHOWN: Final = 4
CURVE_FULL_BPS_MIN: Final = 1_000_000
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_COLORS: Final = {Level.PLAIN: "default", Level.GOOD: "green", Level.LOSS: "yellow", Level.ALARM: "bold red"}
_LIFE: Final = {
    "starting": ("◌", "dim", "starting"),
    "running": ("●", "green", "running"),
    "killed": ("✖", "bold red", "killed"),
    "stopped": ("■", "dim", "stopped"),
}


def picture(ledger: Ledger, width: int) -> RenderableType:
    """The whole picture, at most `width` columns wide and 24 lines high."""
    width = min(width, WIDTH_MAX)
    parts = [_title(ledger), _phases(ledger), _path(ledger), _curve(ledger, width), _account(ledger), _news(ledger)]
    table = Table.grid()
    table.add_column(width=width)
    for part in parts:
        table.add_row(part)
    # The cursor waits in an empty line: there the terminal writes the ^C of somebody who has seen enough.
    return Group(table, Text())


def _title(ledger: Ledger) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(
        Text.assemble((" gapconn demo ", "bold reverse"), "  ", ledger.title),
        Text(f"{ledger.now_s:4.1f} s of about {ledger.seconds:.0f} s ", style="dim"),
    )
    return line


def _phases(ledger: Ledger) -> RenderableType:
    chips = Text()
    for phase in Phase:
        done = ledger.finished or phase.number < ledger.phase.number
        now = phase is ledger.phase and not done
        style = "bold black on cyan" if now else "green" if done else "dim"
        chips.append(f" {'✓' if done else phase.number} {phase.title} ", style=style)
        chips.append(" ")
    story = "Both ends have stopped." if ledger.finished else ledger.phase.story
    return Group(Text(), chips, Text(f" {story}", style="italic"), Text())


def _path(ledger: Ledger) -> RenderableType:
    """source, gap and sink, side by side."""
    table = Table.grid(expand=True)
    for ratio in (10, None, 9, None, 10):
        table.add_column(ratio=ratio, width=None if ratio else 4)
    table.add_row(_ingress(ledger), _arrow(ledger, 0), _gap(ledger), _arrow(ledger, 1), _egress(ledger))
    return table


def _ingress(ledger: Ledger) -> RenderableType:
    symbol, style, word = _LIFE[ledger.ingress_life]
    if ledger.ingress is not None and ledger.ingress.state == "announcing":
        symbol, style, word = "◌", "cyan", "announces itself"
    rate = ledger.rates[-1].sent_bps if ledger.rates and ledger.ingress_life == "running" else 0.0
    return _box(
        "ingress", Text(f"{symbol} {word}", style), ledger.source, {"sent": ledger.sent_records, "rate": _rate(rate)}
    )


def _gap(ledger: Ledger) -> RenderableType:
    state = Text("≈ loses, reorders", "yellow") if ledger.gap.faults else Text("= calm", "green")
    return _box("gap", state, "datagrams, one way", {"in": ledger.gap.received, "out": ledger.gap.forwarded})


def _egress(ledger: Ledger) -> RenderableType:
    symbol, style, word = _LIFE[ledger.egress_life]
    rate = ledger.rates[-1].arrived_bps if ledger.rates and ledger.egress_life == "running" else 0.0
    figures: dict[str, int | str] = {"arrived": ledger.arrived_records, "rate": _rate(rate)}
    alarm = ledger.standing_alarm
    if alarm is not None:
        symbol, style, word = "▲", "bold white on red", alarm.name.upper()
        figures = {"arrived": ledger.arrived_records, "alarm for": f"{ledger.now_s - alarm.raised_at_s:.1f} s"}
    return _box("egress", Text(f"{symbol} {word}", style), ledger.sink, figures, alarmed=alarm is not None)


def _box(title: str, state: Text, what: str, figures: dict[str, int | str], *, alarmed: bool = False) -> RenderableType:
    what_line = Text(what, style="dim", overflow="ellipsis", no_wrap=True)
    state.overflow, state.no_wrap = "ellipsis", True
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, figure in figures.items():
        table.add_row(name, figure if isinstance(figure, str) else f"{figure:,}")
    return Panel(
        Group(state, what_line, table),
        title=f"[bold]{title}[/bold]",
        title_align="left",
        box=box.ROUNDED,
        border_style="red" if alarmed else "dim",
        padding=(0, 1),
    )


def _arrow(ledger: Ledger, end: int) -> RenderableType:
    """Moves while something flows."""
    flowing = bool(ledger.rates) and (ledger.rates[-1].sent_bps, ledger.rates[-1].arrived_bps)[end] > 100_000
    if not flowing or ledger.phase is Phase.STOP:
        return Align(Text(" ── ", style="dim"), vertical="middle")
    step = len(ledger.rates) % 3
    return Align(Text("".join("▶" if i == step else "─" for i in range(3)), style="green"), vertical="middle")


def _curve(ledger: Ledger, width: int) -> RenderableType:
    """What arrived over time, a column for each of the last looks."""
    room = width - 26
    arrived = [rate.arrived_bps for rate in ledger.rates][-room:]
    full = max([CURVE_FULL_BPS_MIN, *(rate.arrived_bps for rate in ledger.rates)])
    bars = "".join(_BLOCKS[max(1, round(bps / full * 8))] if bps > 0 else "▁" for bps in arrived)
    return Text.assemble(
        (" arrived  ", "dim"), (bars.ljust(room), "cyan"), (f" {_rate(arrived[-1] if arrived else 0.0):>14}", "dim")
    )


def _account(ledger: Ledger) -> RenderableType:
    """What the gap did beside what the egress noticed."""
    gap, egress = ledger.gap, ledger.egress
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="dim")
    for heading in ("datagrams", "at the egress", "records"):
        table.add_column(heading, no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
    table.add_row("lost or damaged", _count(gap.harmed), "missed", _count(egress.datagrams_missed), *_whole(ledger))
    table.add_row(
        "doubled", _count(gap.duplicated), "copies thrown away", _count(egress.datagrams_doubled), *_lost(ledger)
    )
    table.add_row("reordered", _count(gap.reordered), "put in order again", "", *_besides(ledger))
    return table


def _whole(ledger: Ledger) -> tuple[str, Text]:
    return "delivered", _count(ledger.arrived_records, "green")


def _lost(ledger: Ledger) -> tuple[str, Text]:
    return "reported lost", _count(ledger.egress.records_lost, "yellow")


def _besides(ledger: Ledger) -> tuple[str, Text]:
    egress = ledger.egress
    if egress.verifies:
        return "wrong or twice", _count(egress.damaged + egress.duplicates + egress.reordered, "bold red")
    return "again, dropped", _count(egress.records_repeated)


def _count(number: int, style: str = "bold") -> Text:
    return Text(f"{number:,}", style=style if number else "dim")


def _news(ledger: Ledger) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=8, justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    news = list(ledger.news)[-NEWS_SHOWN:]
    for item in news:
        table.add_row(f"{item.at_s:.1f} s", Text(item.text, style=_COLORS[item.level]))
    for _ in range(NEWS_SHOWN - len(news)):
        table.add_row("", "")
    return table


def _rate(bps: float) -> str:
    return f"{bps / 1e6:,.1f} Mbit/s"
