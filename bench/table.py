"""The table of all rows, in Markdown: `python -m bench.table MEASURED.json PAGE.md` puts it into a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import ROLES, Figure
from bench.row import Floor

COLUMNS = ("row", "what", "must be", "is: median (range)", "", "pair", "plain program", "lost", "MB", "CPU s/GB")
"""The last two are of ingress and egress: most resident memory, and time per 10^9 bytes of payload."""
MEMORY = Floor(limit=200, unit=" MB", at_most=True)
"""Of each end, in all rows."""
BEGIN, END = "<!-- what was measured -->", "<!-- end of what was measured -->"
"""Between these lines of a page, everything is replaced."""


def head(machine: dict[str, Any]) -> Iterator[str]:
    """What comes before the rows."""
    yield f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}, Python {machine['python']}, loopback."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + " --- |" * len(COLUMNS)


def lines(row: dict[str, Any]) -> Iterator[str]:
    """The lines of a row (`Result.facts`): one for each floor."""
    if row["failure"]:
        yield f"| `{row['name']}` | {row['what']} | | | **not measured**: {row['failure']} | | | | | |"
        return
    middle = sorted(row["rounds"], key=lambda each: each["pair"]["value"])[len(row["rounds"]) // 2]
    rest = [
        _figure(middle["pair"]),
        _figure(middle["plain"]),
        f"{row['lost']:,}",
        ", ".join(f"{size / 1e6:.0f}" for size in row["peak_bytes"].values()),
        ", ".join(f"{seconds:.2f}" for seconds in row["cpu_s_per_gb"].values()),
    ]
    for number, (name, score) in enumerate(row["scores"].items()):
        low, high = score["range"]
        spread = f" ({low:.2f} to {high:.2f})" if len(row["rounds"]) > 1 else ""
        cells = [
            "" if number else f"`{row['name']}`",
            "" if number else row["what"],
            f"{name} {score['floor']}",
            f"{score['median']:.2f}{spread}",
            "reached" if score["reached"] else "**missed**",
            *(rest if not number else [""] * len(rest)),
        ]
        yield f"| {' | '.join(cells)} |"


def memory_line(rows: list[dict[str, Any]]) -> str:
    """The most memory that an end had in any row."""
    peaks = {role: max((row["peak_bytes"].get(role, 0) for row in rows), default=0) / 1e6 for role in ROLES}
    words = ", ".join(f"{role} {peak:.0f}" for role, peak in peaks.items())
    verdict = "reached" if all(map(MEMORY.reached, peaks.values())) else "**missed**"
    return f"| `memory` | resident memory of each end, all rows | {MEMORY} | {words} | {verdict} | | | | | |"


def _figure(figure: dict[str, Any] | None) -> str:
    return str(Figure(what="", value=figure["value"], unit=figure["unit"])) if figure else ""


def main() -> int:
    """Replace what stands between the two marks of the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("measured", type=Path, help="what `python -m bench --json` wrote")
    parser.add_argument("page", type=Path, help="a page with the two marks")
    arguments = parser.parse_args()
    measured, text = json.loads(arguments.measured.read_text()), arguments.page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        parser.error(f"{arguments.page} does not have the lines {BEGIN} and {END}")
    table = [*head(measured["machine"]), *(line for row in measured["rows"] for line in lines(row))]
    table += [memory_line(measured["rows"])]
    arguments.page.write_text("\n".join([before + begin, "", *table, "", end + after]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
