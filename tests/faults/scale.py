"""How much is done: a short form for every run of the tests, and a long one (`make faults`)."""

from __future__ import annotations

import os
from typing import Any, Final

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
    kills=2,
    stops=2,
    stop_s=1.5,
    broker_kills=1,
    lossy_records=4_000,
    away_s=2.0,
    away_records_per_second=4_000,
    outages=2,
    soak_s=4.0,
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
    """The form that the environment asks for; `GAPCONN_FAULTS_KILLS` changes its `kills`, and so on."""
    word = os.environ.get(VARIABLE, "short")
    if word not in ("short", "long"):
        raise ValueError(f"{VARIABLE} is {word!r}, and must be short or long")
    scale = LONG if word == "long" else SHORT
    given: dict[str, Any] = {
        name: type(value)(number)
        for name, value in attrs.asdict(scale).items()
        if (number := os.environ.get(f"{VARIABLE}_{name.upper()}"))
    }
    return attrs.evolve(scale, **given)


SCALE: Final = chosen()
