"""Fixtures with a real Kafka broker.

The whole run, all its processes together, has one broker; whoever needs it first starts it, and it ends with the run,
however the run ends. Tests that stop a broker get one of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gapconn.testing.kafka_broker import KafkaNode, broker_address, make_node
from tests.kafka.cluster import Cluster


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`host:port` of the run's broker."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The workers are children of the process that is the run, and keep their files side by side.
        return broker_address(base.parent / "kafka", owner_pid=os.getppid())
    return broker_address(base / "kafka", owner_pid=os.getpid())


@pytest.fixture(scope="session")
def kafka(kafka_address: str) -> Cluster:
    """The run's broker. Topics and groups on it are told apart by their names only."""
    return Cluster(kafka_address)


@pytest.fixture
def kafka_node(tmp_path: Path) -> Iterator[KafkaNode]:
    """A broker of the test's own, running, to be stopped and started at will."""
    with make_node(tmp_path / "kafka") as node:
        yield node
