"""How much is done: a short form for every run of the tests, and a long one (`make faults`)."""

from __future__ import annotations

import os
from typing import Final

import attrs

VARIABLE: Final = "GAPCONN_FAULTS"


@attrs.frozen(kw_only=True)
class Scale:
    """Counts and lengths of one form."""

    kills: int
    stops: int
    stop_s: float
    """How long a process stands still, at most."""
    broker_kills: int
    lossy_records: int
    """That cross each kind of bad link."""
    away_s: float
    """How long the target is away."""
    away_records_per_second: float
    outages: int
    soak_s: float
    is_long: bool


SHORT: Final = Scale(
    kills=3,
    stops=2,
    stop_s=1.5,
    broker_kills=1,
    lossy_records=4_000,
    away_s=2.0,
    away_records_per_second=4_000,
    outages=2,
    soak_s=5.0,
    is_long=False,
)
LONG: Final = Scale(
    kills=200,
    stops=20,
    stop_s=6.0,
    broker_kills=20,
    lossy_records=200_000,
    away_s=60.0,
    away_records_per_second=20_000,
    outages=10,
    soak_s=120.0,
    is_long=True,
)


def chosen() -> Scale:
    """The form that the environment asks for; `GAPCONN_FAULTS_SOAK_S` changes the length of the soak alone."""
    word = os.environ.get(VARIABLE, "short")
    if word not in ("short", "long"):
        raise ValueError(f"{VARIABLE} is {word!r}, and must be short or long")
    scale = LONG if word == "long" else SHORT
    soak_s = os.environ.get(f"{VARIABLE}_SOAK_S")
    return attrs.evolve(scale, soak_s=float(soak_s)) if soak_s else scale


SCALE: Final = chosen()
