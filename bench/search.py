"""The highest rate at which nothing is lost: nothing tells the sender of a one-way link that it is too fast."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from bench.measure import Figure

MORE = 1.02
"""A higher rate must bring so much more payload; where it does not, the ingress (or what feeds it) is the limit."""


def highest_rate(
    carry: Callable[[int], Figure], start_bps: int, *, trials_max: int, growth: float, close: float = 1.07
) -> Figure:
    """The figure with the highest value of those at which nothing was lost.

    Args:
        carry: Measures at a rate, in bits per second. The value of its figure is payload, in any unit.
        start_bps: Rate of the first trial: that of the round before, or a guess.
        trials_max: If something was lost at all of them, the last one is what there is.
        close: The search ends when a rate without loss and one with are closer than this factor.
        growth: Factor from one rate to the next, as long as it is not known where losses begin.
    """
    best: Figure | None = None
    lost_at_bps = 0.0
    rate_bps = float(start_bps)
    trials = []
    for _ in range(trials_max):
        figure = carry(int(rate_bps))
        trials.append({"rate_bps": figure.rate_bps, "value": figure.value, "lost": figure.lost})
        if figure.lost:
            lost_at_bps = rate_bps
            rate_bps = (best.rate_bps * lost_at_bps) ** 0.5 if best else rate_bps / growth
        else:
            no_more = best is not None and figure.value < best.value * MORE
            best = figure if best is None else max(best, figure, key=lambda figure: figure.value)
            if no_more:
                break
            rate_bps = (rate_bps * lost_at_bps) ** 0.5 if lost_at_bps else rate_bps * growth
        if best is not None and lost_at_bps and lost_at_bps / best.rate_bps < close:
            break
    return attrs.evolve(best or figure, detail={**(best or figure).detail, "trials": trials})
