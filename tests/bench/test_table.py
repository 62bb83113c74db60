"""The table of what was measured: floors, medians, and what could not be measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from bench import table
from bench.measure import ROLES, Figure
from bench.row import Effort, Floor, Result, Round, Row

EFFORT = Effort(rounds=3, seconds=1, total_bytes=1)


def row(*ratios: float, lost: int = 0) -> dict[str, Any]:
    """A row whose rounds had these ratios, as it is written down and read again."""

    def figure(value: float) -> Figure:
        return Figure(what="pair", value=value, unit="Gbit/s", lost=lost, cpu_s_per_gb=dict.fromkeys(ROLES, 1.5))

    rounds = [
        Round(pair=figure(10 * ratio), plain=Figure(what="plain", value=10, unit="Gbit/s"), scores={"ratio": ratio})
        for ratio in ratios
    ]
    made = Row(name="tcp", what="a stream", floors={"ratio": Floor(limit=0.4)}, rounds=lambda _: iter(rounds))
    result = attrs.evolve(made.measure(EFFORT), peak_bytes=dict.fromkeys(ROLES, 66_000_000))
    facts: dict[str, Any] = json.loads(json.dumps(result.facts()))
    return facts


def test_the_median_decides_and_the_range_is_shown() -> None:
    (line,) = table.lines(row(0.3, 0.45, 0.9))
    assert (
        "| ratio ≥ 0.4 | 0.45 (0.30 to 0.90) | reached | 4.50 Gbit/s | 10.00 Gbit/s | 0 | 66, 66 | 1.50, 1.50 |" in line
    )
    (line,) = table.lines(row(0.3, 0.39, 0.9, 0.99))  # only as many rounds as were asked for
    assert "| **missed** |" in line


def test_losses_are_shown() -> None:
    assert "| 1,234 |" in next(iter(table.lines(row(0.5, lost=1234))))


def test_a_row_that_failed_says_why() -> None:
    failed = Result(
        row=Row(name="kafka", what="records", floors={}, rounds=lambda _: iter(())), rounds=[], failure="no broker"
    )
    (line,) = table.lines(failed.facts())
    assert "**not measured**: no broker" in line


def test_memory_is_that_of_the_worst_row() -> None:
    rows = [row(0.5), row(0.5)]
    assert "| ≤ 200 MB | ingress 66, egress 66 | reached |" in table.memory_line(rows)
    rows[1]["peak_bytes"]["egress"] = 201_000_000
    assert "| ingress 66, egress 201 | **missed** |" in table.memory_line(rows)


def test_a_page_gets_the_table_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, page = tmp_path / "measured.json", tmp_path / "page.md"
    machine = {"cpu": "A CPU", "cpus": 2, "system": "Linux", "python": "3.11.7"}
    measured.write_text(json.dumps({"machine": machine, "rows": [row(0.5)]}))
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["table", str(measured), str(page)])
    assert table.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `tcp` |" in text
    assert "A CPU, 2 CPUs" in text
