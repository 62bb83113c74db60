"""Runs that went wrong once, played again."""

from __future__ import annotations

import pytest

from tests.protocol.machine.scenario import play, scenarios
from tests.protocol.machine.world import small_limits

SCENARIOS = scenarios()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenario(name: str) -> None:
    """Nothing of it goes wrong any more, and it still shows what it is about."""
    scenario = SCENARIOS[name]
    with small_limits():
        assert play(scenario).reached.keys() >= set(scenario.reaches)
