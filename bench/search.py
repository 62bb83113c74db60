"""The highest rate at which nothing is lost: nothing tells the sender of a one-way link that it is too fast."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Figure

GROWTH = 1.25
"""Factor from one rate to the next, as long as it is not known where losses begin."""
CLOSE = 1.07
"""A rate without loss and one with are so close that the search ends."""
REACHED = 0.85
"""Payload must come to so much of the link's rate; where it does not, the ingress (or what feeds it) is the limit."""
DOUBT = 0.97
"""A rate at which something was lost is not tried again, but one that is a little lower, for a machine's moods."""


def highest_rate(carry: Callable[[int], Figure], start_bps: int, trials_max: int) -> Figure:
    """The figure with the highest value of those at which nothing was lost.

    Args:
        carry: Measures at a rate, in bits per second. The value of its figure is payload, in any unit.
        start_bps: Rate of the first trial: that of the round before, or a guess.
        trials_max: If something was lost at all of them, the last one is what there is.
    """
    best: Figure | None = None
    lost_at_bps = 0.0
    rate_bps = float(start_bps)
    for _ in range(trials_max):
        figure = carry(int(rate_bps))
        if figure.lost:
            lost_at_bps = rate_bps
            rate_bps = (best.rate_bps * lost_at_bps) ** 0.5 if best else rate_bps / GROWTH
        else:
            if best is not None and figure.value < best.value * 1.02:
                best = max(best, figure, key=lambda figure: figure.value)
                break  # more rate is not more payload
            best = figure
            rate_bps = (rate_bps * lost_at_bps) ** 0.5 if lost_at_bps else rate_bps * GROWTH
        if best is not None and lost_at_bps and lost_at_bps / best.rate_bps < CLOSE:
            break
    return best or figure
