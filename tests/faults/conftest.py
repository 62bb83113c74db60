"""Fixtures of the fault suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.pair import DELIVERIES
from tests.faults.scale import SCALE
from tests.processes.ends import Ends


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is only for the long form."""
    if not SCALE.is_long:
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    """To start processes; they are ended with the test."""
    ends = Ends(tmp_path)
    try:
        yield ends
    finally:
        ends.close()


@pytest.fixture(params=DELIVERIES if SCALE.is_long else DELIVERIES[-1:])
def delivery(request: pytest.FixtureRequest) -> str:
    """Each delivery mode of the Kafka sink; the stricter one in the short form."""
    mode: str = request.param
    return mode
