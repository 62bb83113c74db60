"""Throughput by MTU, repair and security, generate → discard: `python -m bench.sweep --json FILE`."""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from bench import generate_discard, machine
from bench.measure import link_sections
from bench.relay import relay
from bench.rows import key_file
from bench.search import highest_rate

LINES = (
    (1500, "none"),
    (4000, "none"),
    (9000, "none"),
    (9000, "aes-256-gcm"),
    (4000, "aes-256-gcm"),
    (1500, "aes-256-gcm"),
)
"""MTU and security, so that each one is near the one before: the search for its rate starts from there."""
REPAIRS_PERCENT = (0, 2, 5, 10, 20)
GUESS_BPS = 4_000_000_000
FIRST: dict[str, Any] = {"trials_max": 8, "growth": 1.5}
"""Of all, whose rate is a guess."""
FIRST_OF_LINE: dict[str, Any] = {"trials_max": 4, "growth": 1.25}
FURTHER: dict[str, Any] = {"trials_max": 3, "growth": 1.12}


def main() -> int:
    """Exit code 0 when every point could be measured without loss."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.2, help="length of a trial (default 1.2)")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="write the points to this file")
    arguments = parser.parse_args()
    before, started_s = machine.facts(), time.monotonic()
    points: list[dict[str, Any]] = []
    relays: list[float] = []
    rate_bps, effort = GUESS_BPS, FIRST
    for mtu_bytes, security in LINES:
        # In turn with the pairs, so that the machine's moods hit both.
        relays.append(relay(2 * arguments.seconds).value)
        for percent in REPAIRS_PERCENT:
            link = link_sections(repair=f"{percent}%", key_file=None if security == "none" else key_file())
            carry = functools.partial(generate_discard.carry, seconds=arguments.seconds, mtu_bytes=mtu_bytes, link=link)
            figure = highest_rate(carry, rate_bps, close=1.15, **effort)
            rate_bps, effort = figure.rate_bps, FURTHER
            points.append(
                {"mtu_bytes": mtu_bytes, "repair_percent": percent, "security": security, **attrs.asdict(figure)}
            )
            print(
                f"MTU {mtu_bytes}, repair {percent} %, security {security}: {figure} at {rate_bps / 1e9:.2f} Gbit/s, "
                f"lost {figure.lost}",
                flush=True,
            )
        rate_bps, effort = points[-len(REPAIRS_PERCENT)]["rate_bps"], FIRST_OF_LINE
    arguments.json.write_text(
        json.dumps({"machine": before, "relay_gbps": statistics.median(relays), "points": points}, indent=1) + "\n"
    )
    print(f"{len(points)} points in {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return int(any(point["lost"] for point in points))


if __name__ == "__main__":
    sys.exit(main())
