"""Draw what was measured: `python -m bench.plots TABLE.json SWEEP.json DIRECTORY`. Needs matplotlib (`make plots`)."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {1500: "#1f77b4", 4000: "#2ca02c", 9000: "#d62728"}
STYLES = {"none": ("-", "checksum only"), "aes-256-gcm": ("--", "AES-256-GCM")}


def main() -> int:
    """Write one file for each plot; a plot for which nothing was measured is left out, and that is said."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("table", type=Path, help="what `python -m bench --json` wrote")
    parser.add_argument("sweep", type=Path, help="what `python -m bench.sweep --json` wrote")
    parser.add_argument("directory", type=Path, help="where the plots go")
    arguments = parser.parse_args()
    # Without them, the same data would give another file each time.
    mpl.rcParams["svg.hashsalt"] = "gapconn"
    mpl.rcParams.update(
        {"font.size": 10, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "axes.spines.top": False}
    )
    arguments.directory.mkdir(parents=True, exist_ok=True)
    sweep, table = (json.loads(file.read_text()) for file in (arguments.sweep, arguments.table))
    _write(draw_throughput(sweep), arguments.directory / "throughput.svg")
    measured = {row["name"]: row for row in table["rows"] if row["rounds"]}
    _write(draw_ratios(list(measured.values())), arguments.directory / "ratios.svg")
    latencies = [measured[name] for name in ("udp-latency", "kafka-latency") if name in measured]
    if latencies:
        _write(draw_latency(latencies), arguments.directory / "latency.svg")
    else:
        print("no row of latency was measured: no plot of it", file=sys.stderr)
    return 0


def draw_throughput(sweep: dict[str, Any]) -> Figure:
    """Payload by repair, a line for each MTU and security; on the right the same as a ratio to the relay."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for mtu_bytes, color in COLORS.items():
        for security, (style, words) in STYLES.items():
            points = [
                point for point in sweep["points"] if (point["mtu_bytes"], point["security"]) == (mtu_bytes, security)
            ]
            repairs = [point["repair_percent"] for point in points]
            values = [point["value"] for point in points]
            axes.plot(repairs, values, style, color=color, marker="o", label=f"MTU {mtu_bytes}, {words}")
    lost = [(point["repair_percent"], point["value"]) for point in sweep["points"] if point["lost"]]
    if lost:
        axes.plot(*zip(*lost, strict=True), "x", color="black", markersize=10, label="something was lost")
    relay_gbps = sweep["relay_gbps"]
    axes.set_xlabel("repair symbols (% of the source symbols)")
    axes.set_ylabel("payload without loss (Gbit/s)")
    axes.set_xticks(sorted({point["repair_percent"] for point in sweep["points"]}))
    axes.set_ylim(bottom=0)
    ratio = axes.secondary_yaxis("right", functions=(lambda gbps: gbps / relay_gbps, lambda ratio: ratio * relay_gbps))
    ratio.set_ylabel(f"ratio to a plain TCP relay ({relay_gbps:.1f} Gbit/s)")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.set_title(f"generate → discard by MTU, repair and security\n{_words(sweep['machine'])}", fontsize=10)
    return figure


def draw_ratios(rows: list[dict[str, Any]]) -> Figure:
    """The rows with a yardstick: median and range, and the floor of each."""
    found = [row for row in rows if "ratio" in row["scores"]]
    figure = Figure(figsize=(8, 0.7 + 0.6 * max(1, len(found))), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(found)):
        score = row["scores"]["ratio"]
        low, high = score["range"]
        median = score["median"]
        axes.barh(place, median, height=0.5, color="#2ca02c" if score["reached"] else "#d62728", alpha=0.7)
        axes.plot([low, high], [place, place], color="black", linewidth=1.5)
        floor = float(score["floor"].split()[1])
        axes.plot([floor, floor], [place - 0.35, place + 0.35], color="black", linestyle=":")
        axes.text(high + 0.01, place, f" {median:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [row["name"] for row in reversed(found)])
    axes.set_xlabel("ratio to the plain program (line: range of the rounds; dotted: what must be reached)")
    axes.set_xlim(0, 1.08 * max(axes.get_xlim()[1], 0.1))
    return figure


def draw_latency(rows: list[dict[str, Any]]) -> Figure:
    """Quantiles through the pair and of the plain program, on a logarithmic scale."""
    figure = Figure(figsize=(4.5 * len(rows), 4), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        _draw_quantiles(axes, row)
    return figure


def _draw_quantiles(axes: Axes, row: dict[str, Any]) -> None:
    width = 0.38
    names = list(row["rounds"][0]["pair"]["detail"]["quantiles_ms"])
    for offset, key, words, color in (
        (-width / 2, "plain", "plain", "#7f7f7f"),
        (width / 2, "pair", "through the pair", "#1f77b4"),
    ):
        by_round = [each[key]["detail"]["quantiles_ms"] for each in row["rounds"]]
        medians = [statistics.median(each[name] for each in by_round) for name in names]
        bars = axes.bar([place + offset for place in range(len(names))], medians, width, label=words, color=color)
        axes.bar_label(bars, fmt="{:,.3g}", fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    axes.set_ylabel("latency (ms)")
    axes.margins(y=0.1)
    axes.set_title(textwrap.fill(row["what"], 50), fontsize=9)
    axes.legend(fontsize=8, loc="upper left")


def _words(facts: dict[str, Any]) -> str:
    return f"{facts['cpu']}, {facts['cpus']} CPUs, Python {facts['python']}, loopback"


def _write(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
    print(file)


if __name__ == "__main__":
    sys.exit(main())
