"""How long the search takes.

`HYPOTHESIS_PROFILE` or `GAPCONN_TEST_PROFILE` names one: `dev` (as without), `ci`, `nightly`. They are not registered
with Hypothesis, so that nothing else runs differently.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import attrs
import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.machine.machine import LinkMachine

_RUNS_PER_ROUND: Final = 10
"""Hypothesis makes variations of what it has only behind the tenth run, five to each new one. Those are good for a
function of few arguments, but with fifty steps a new run shows more: several short rounds see more than a long one."""


@attrs.frozen(kw_only=True)
class Profile:
    """How much is searched."""

    rounds: int
    steps: int
    """In one run, at the most."""
    first_seed: int | None = 0
    """From where on the rounds are numbered, to be the same each time; None chooses at random."""
    shrink: bool = True
    """Whether a failure is made small. Where it only matters that there is one, that is wasted time."""

    @property
    def runs(self) -> int:
        return self.rounds * _RUNS_PER_ROUND


PROFILES = {
    "dev": Profile(rounds=5, steps=30),
    "ci": Profile(rounds=20, steps=50),
    "nightly": Profile(rounds=400, steps=80, first_seed=None),
}
HUNT = Profile(rounds=8, steps=40, shrink=False)
"""For seeded bugs; this finds nearly all,"""
LONG_HUNT = Profile(rounds=32, steps=40, first_seed=8, shrink=False)
"""and this the others."""


def chosen_profile() -> Profile:
    """The profile that was asked for."""
    name = os.environ.get("GAPCONN_TEST_PROFILE") or os.environ.get("HYPOTHESIS_PROFILE")
    return PROFILES.get(name or "dev", PROFILES["dev"])


def search(profile: Profile) -> Counter[str]:
    """Run the machine, within `small_limits`; in how many runs each noteworthy thing happened.

    Raises:
        AssertionError: the core does not do what the oracle says. Its notes tell the run, as JSON too.
    """
    phases = [phase for phase in Phase if profile.shrink or phase in (Phase.explicit, Phase.generate)]
    reached: Counter[str] = Counter()
    for number in range(profile.rounds):
        machine = type("Machine", (LinkMachine,), {"reached": reached})
        if profile.first_seed is not None:
            machine = hypothesis.seed(profile.first_seed + number)(machine)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=_RUNS_PER_ROUND,
                stateful_step_count=profile.steps,
                deadline=None,
                derandomize=False,
                database=None,
                phases=phases,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    return reached
