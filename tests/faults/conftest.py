"""Fixtures of the fault suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.pair import DELIVERIES
from tests.processes.ends import Ends


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    """To start processes; they are ended with the test."""
    ends = Ends(tmp_path)
    try:
        yield ends
    finally:
        ends.close()


@pytest.fixture(params=DELIVERIES)
def delivery(request: pytest.FixtureRequest) -> str:
    """Each delivery mode of the Kafka sink."""
    mode: str = request.param
    return mode
