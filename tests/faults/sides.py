"""Brokers of the suite's own, to be killed and cut off: one that is both sides at once, or one for each side."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs

from gapconn.testing.kafka_broker import KafkaNode, make_node
from gapconn.units import Address
from tests.kafka.cluster import Cluster
from tests.processes.ends import free_host, free_port

BROKERS_VARIABLE: Final = "GAPCONN_FAULTS_BROKERS"
"""2 for a broker of its own on each side; with 1, the default, one broker is both."""


@attrs.frozen(eq=False)
class Sides:
    """The two clusters. The target has a second listener, which its clients are told to reach through a proxy."""

    source_node: KafkaNode
    target_node: KafkaNode
    target_listener: Address
    proxy_listens: Address
    """Where the clients of the second listener go."""

    @property
    def source(self) -> Cluster:
        return Cluster(self.source_node.address)

    @property
    def target(self) -> Cluster:
        """The same as its brokers see it, without a proxy."""
        return Cluster(self.target_node.address)

    @property
    def nodes(self) -> list[tuple[str, KafkaNode]]:
        """Each node with the side that it is."""
        if self.source_node is self.target_node:
            return [("the broker of both sides", self.source_node)]
        return [("the source's broker", self.source_node), ("the target's broker", self.target_node)]


@contextmanager
def sides(directory: Path) -> Iterator[Sides]:
    """Running brokers; they end with the context."""
    host = free_host()
    behind, before = (Address(host, free_port(host, socket.SOCK_STREAM)) for _ in range(2))
    target = make_node(directory / "target")
    _add_listener(target, behind, before)
    source = make_node(directory / "source") if os.environ.get(BROKERS_VARIABLE) == "2" else target
    with ExitStack() as stack:
        stack.enter_context(target)
        if source is not target:
            stack.enter_context(source)
        yield Sides(source, target, behind, before)


def _add_listener(node: KafkaNode, listener: Address, advertised: Address) -> None:
    """Add a second way to a node that was not started yet."""
    settings = node.properties
    settings["listeners"] += f",APART://{listener}"
    settings["advertised.listeners"] += f",APART://{advertised}"
    settings["listener.security.protocol.map"] += ",APART:PLAINTEXT"
    settings["inter.broker.listener.name"] = "PLAINTEXT"
