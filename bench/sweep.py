"""Throughput by MTU, repair and security, generate → discard: `python -m bench.sweep --json FILE`."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from bench import generate_discard, machine
from bench.measure import Figure, link_sections
from bench.relay import relay
from bench.rows import key_file
from bench.search import highest_rate

MTUS_BYTES = (1500, 4000, 9000)
REPAIRS_PERCENT = (0, 2, 5, 10, 20)
SECURITIES = ("none", "aes-256-gcm")
TRIALS = 3
GROWTH = 1.15
GUESS_BPS = 4_000_000_000


def main() -> int:
    """Exit code 0 when every point could be measured without loss."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.2, help="length of a trial (default 1.2)")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="write the points to this file")
    arguments = parser.parse_args()
    before, started_s = machine.facts(), time.monotonic()
    points: list[dict[str, Any]] = []
    relays: list[float] = []
    guess_bps = GUESS_BPS
    for mtu_bytes, security in itertools.product(MTUS_BYTES, SECURITIES):
        # In turn with the pairs, so that the machine's moods hit both.
        relays.append(relay(2 * arguments.seconds).value)
        for percent in REPAIRS_PERCENT:
            figure = _measure(mtu_bytes, percent, security, arguments.seconds, guess_bps)
            guess_bps = figure.rate_bps
            points.append(
                {"mtu_bytes": mtu_bytes, "repair_percent": percent, "security": security, **attrs.asdict(figure)}
            )
            print(
                f"MTU {mtu_bytes}, repair {percent} %, security {security}: {figure} at {guess_bps / 1e9:.2f} Gbit/s, "
                f"lost {figure.lost}",
                flush=True,
            )
    arguments.json.write_text(
        json.dumps({"machine": before, "relay_gbps": statistics.median(relays), "points": points}, indent=1) + "\n"
    )
    print(f"{len(points)} points in {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return int(any(point["lost"] for point in points))


def _measure(mtu_bytes: int, percent: int, security: str, seconds: float, guess_bps: int) -> Figure:
    """One point; the search starts from the rate of its neighbour."""
    link = link_sections(repair=f"{percent}%", key_file=None if security == "none" else key_file())

    def carry(rate_bps: int) -> Figure:
        return generate_discard.carry(rate_bps, seconds, mtu_bytes=mtu_bytes, link=link)

    return highest_rate(carry, guess_bps, trials_max=TRIALS, growth=GROWTH)


if __name__ == "__main__":
    sys.exit(main())
