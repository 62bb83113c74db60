"""The accounts of a run as a table: `python -m tests.faults.table REPORT.jsonl PAGE.md` puts it into a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- what a run found -->", "<!-- end of what a run found -->"
"""Between these lines of the page, everything is replaced."""
COLUMNS = {
    "case": "case",
    "delivery": "delivery",
    "produced": "produced",
    "once": "once",
    "twice": "twice",
    "lost": "lost, with places",
    "placeless": "lost, by number",
    "repaired": "repaired",
    "unaccounted": "unaccounted",
    "faults": "what was done, or measured",
}
"""Keys of an account, and what stands above their column."""


def lines(accounts: list[dict[str, Any]]) -> Iterator[str]:
    """The table, a line for each account."""
    yield f"| {' | '.join(COLUMNS.values())} |"
    yield "|" + " --- |" * len(COLUMNS)
    for account in accounts:
        done = ", ".join(f"{name}: {count:,}" for name, count in account["faults"].items())
        cells = [f"{fact:,}" if isinstance(fact, int) else fact for fact in (account[key] for key in COLUMNS)]
        yield f"| {' | '.join([*cells[:-1], done])} |"


def main(report: Path, page: Path) -> None:
    """Replace the table of `page` with what `report` has."""
    accounts = [json.loads(line) for line in report.read_text().splitlines()]
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for a table"
    page.write_text("\n".join([before + BEGIN, "", *lines(accounts), "", END + after]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
