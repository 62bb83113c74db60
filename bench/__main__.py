"""Run the benchmarks and print a table: `python -m bench [NAME ...] [--rounds N]`."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable

from bench import generate_discard, kafka_kafka, tcp_tcp
from bench.measure import Figure

BENCHES: dict[str, Callable[[], tuple[Figure, Figure]]] = {
    "generate": generate_discard.run,
    "tcp": tcp_tcp.run,
    "kafka": kafka_kafka.run,
}


def main() -> int:
    """Each benchmark measures the pair and its yardstick in turn; the ratio is taken round by round."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default 3)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - BENCHES.keys()
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")

    print(f"Python {platform.python_version()}, {platform.machine()}, Linux {platform.release()}", file=sys.stderr)
    print("| what | pair | plain program | ratio (median, range) | lost |")
    print("| --- | --- | --- | --- | --- |")
    for name in arguments.names or BENCHES:
        rounds = [BENCHES[name]() for _ in range(arguments.rounds)]
        ratios = [pair.value / plain.value for pair, plain in rounds]
        pair, plain = (_median([r[i] for r in rounds]) for i in (0, 1))
        lost = max(r[0].lost for r in rounds)
        print(
            f"| {pair.what} | {pair} | {plain} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {lost} |",
            flush=True,
        )
    return 0


def _median(figures: list[Figure]) -> Figure:
    return sorted(figures, key=lambda figure: figure.value)[len(figures) // 2]


sys.exit(main())
