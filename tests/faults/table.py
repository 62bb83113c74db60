"""The accounts of a run as a table: `python -m tests.faults.table REPORT.jsonl PAGE.md` puts it into a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- what a run found -->", "<!-- end of what a run found -->"
"""Between these lines of the page, everything is replaced."""
COLUMNS = ("case", "delivery", "produced", "once", "twice", "reported lost", "repaired", "unaccounted", "what was done")


def lines(accounts: list[dict[str, Any]]) -> Iterator[str]:
    """The table, a line for each account."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + " --- |" * len(COLUMNS)
    for account in accounts:
        done = ", ".join(f"{name}: {count:,}" for name, count in account["faults"].items())
        figures = (account[name] for name in ("produced", "once", "twice", "lost", "repaired", "unaccounted"))
        cells = [account["case"], account["delivery"], *(f"{figure:,}" for figure in figures), done]
        yield f"| {' | '.join(cells)} |"


def main(report: Path, page: Path) -> None:
    """Replace the table of `page` with what `report` has."""
    accounts = [json.loads(line) for line in report.read_text().splitlines()]
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for a table"
    page.write_text("\n".join([before + BEGIN, "", *lines(accounts), "", END + after]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
