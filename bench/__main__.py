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

from bench import machine
from bench.measure import ROLES
from bench.row import COLUMNS, Effort, Floor, Result, lines
from bench.rows import ROWS

MEMORY_BYTES_MAX = 200_000_000


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
    effort = Effort(rounds=arguments.rounds, seconds=arguments.seconds, total_bytes=int(arguments.bytes))

    before = machine.facts()
    print(f"{before['cpu']}, {before['cpus']} CPUs, {before['system']}, Python {before['python']}\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    results = []
    for row in ROWS:
        if row.name in (arguments.names or names):
            started_s = time.monotonic()
            try:
                result = row.measure(effort)
            except Exception as error:
                traceback.print_exc()
                result = Result(row=row, rounds=[], failure=f"{type(error).__name__}: {error}")
            results.append(result)
            print("\n".join(lines(result)), flush=True)
            print(f"{row.name}: {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    print(_memory_line(results))
    if arguments.json:
        everything: dict[str, Any] = {
            "machine": {**before, "load_1min_after": machine.facts()["load_1min"]},
            "effort": attrs.asdict(effort),
            "rows": [result.facts() for result in results],
        }
        arguments.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    return int(any(result.failure for result in results))


def _memory_line(results: list[Result]) -> str:
    """The highest of all rows."""
    floor = Floor(limit=MEMORY_BYTES_MAX / 1e6, unit=" MB", at_most=True)
    peaks = {role: max((each.peak_bytes.get(role, 0) for each in results), default=0) / 1e6 for role in ROLES}
    words = ", ".join(f"{role} {peak:.0f}" for role, peak in peaks.items())
    verdict = "reached" if all(map(floor.reached, peaks.values())) else "**missed**"
    return f"| `memory` | resident memory of each end, all rows | {floor} | {words} | {verdict} | | | | | |"


if __name__ == "__main__":
    sys.exit(main())
