"""Quantiles of latencies, for the table and its plot."""

from __future__ import annotations

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def quantiles(latencies: list[float]) -> dict[str, float]:
    """Of latencies in any order; in their unit."""
    ordered = sorted(latencies)
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in QUANTILES.items()}
