"""Measure whole pairs against plain programs, and print a table: `python -m bench [NAME ...]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import attrs

from bench import machine, table
from bench.row import Effort, Result
from bench.rows import ROWS


def main() -> int:
    """Exit code 0 when everything could be measured, whatever the figures are."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which rows: {', '.join(names)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=3, help="length of a trial (default 3); the row `paced` takes 20 times as long"
    )
    parser.add_argument(
        "--bytes", type=float, default=10e9, help="what crosses in the rows `loss` and `bursts` (default 10e9)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(names)}")
    if arguments.json:  # now, and not after a quarter of an hour
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    effort = Effort(rounds=arguments.rounds, seconds=arguments.seconds, total_bytes=int(arguments.bytes))

    before = machine.facts()
    print("\n".join(table.head(before)), flush=True)
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        if row.name in (arguments.names or names):
            started_s = time.monotonic()
            try:
                result = row.measure(effort)
            except Exception as error:
                traceback.print_exc()
                result = Result(row=row, rounds=[], failure=f"{type(error).__name__}: {error}")
            rows.append({**result.facts(), "took_s": time.monotonic() - started_s})
            print("\n".join(table.lines(rows[-1])), flush=True)
    print(table.memory_line(rows))
    if arguments.json:
        everything: dict[str, Any] = {
            "machine": {**before, "load_1min_after": machine.facts()["load_1min"]},
            "effort": attrs.asdict(effort),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    return int(any(row["failure"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
