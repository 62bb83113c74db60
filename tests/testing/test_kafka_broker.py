from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gapconn.testing.kafka_broker import ADDRESS_VARIABLE, BrokerMissingError, broker_address

STARTS_A_NODE_AND_DIES = """
import os, sys
from pathlib import Path
from gapconn.testing.kafka_broker import make_node

node = make_node(Path(sys.argv[1]))
node.start()
print(node.port, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_given_broker_is_used_and_none_is_started(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, kafka_address)
    assert broker_address(tmp_path / "kafka", owner_pid=1) == kafka_address
    assert not (tmp_path / "kafka").exists()


def test_with_nothing_to_start_one_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (ADDRESS_VARIABLE, "JAVA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BrokerMissingError, match=r"(?s)no Java.*no docker.*GAPCONN_TEST_KAFKA.*Java 17 and Maven"):
        broker_address(tmp_path / "kafka", owner_pid=1)


@pytest.mark.kafka
def test_a_node_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    owner = subprocess.run(
        [sys.executable, "-c", STARTS_A_NODE_AND_DIES, str(directory)], capture_output=True, text=True, check=False
    )
    assert owner.returncode == -9, owner.stderr
    port, deadline = int(owner.stdout), time.monotonic() + 30
    while directory.exists():
        assert time.monotonic() < deadline, "its files are still there"
        time.sleep(0.05)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
