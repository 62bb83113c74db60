"""What the benchmarks share: a figure, and a pair of real processes on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Figure:
    """One measurement."""

    what: str
    value: float
    unit: str
    lost: int = 0
    """Records that did not arrive."""

    def __str__(self) -> str:
        return f"{self.value:,.1f} {self.unit}" if self.value < 1000 else f"{self.value:,.0f} {self.unit}"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.define(kw_only=True)
class Pair:
    """A running pair."""

    ingress: subprocess.Popen[bytes]
    egress: subprocess.Popen[bytes]
    ingress_admin: int
    egress_admin: int

    def status(self, role: str) -> dict[str, Any]:
        """What `/status` of that end says."""
        port = self.ingress_admin if role == "ingress" else self.egress_admin
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
            return status

    def wait_active(self) -> None:
        """Until the session is followed and data may flow."""
        _wait_for(lambda: self.status("egress")["state"] == "following", "the egress follows the session")
        _wait_for(lambda: self.status("ingress")["state"] == "active", "the ingress is active")


@contextlib.contextmanager
def running_pair(source: str, sink: str, *, rate: str, mtu_bytes: int = 1500, link: str = "") -> Iterator[Pair]:
    """Two `gapconn` processes; `source` and `sink` are the lines of their sections."""
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory:
        file = Path(directory) / "pair.toml"
        file.write_text(
            f"""[link]
name = "bench"
address = "127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
mtu_bytes = {mtu_bytes}
rate = "{rate}"
heartbeat_interval = "200ms"
state_directory = "{directory}/state"
{link}
[source]
{source}
[sink]
{sink}
[admin]
[log]
level = "warning"
"""
        )
        with open(Path(directory) / "log", "wb") as log:
            ports = {"egress": free_port(), "ingress": free_port()}
            with contextlib.ExitStack() as running:
                processes = {
                    role: running.enter_context(_process(role, file, ports[role], log))
                    for role in ("egress", "ingress")
                }
                pair = Pair(
                    ingress=processes["ingress"],
                    egress=processes["egress"],
                    ingress_admin=ports["ingress"],
                    egress_admin=ports["egress"],
                )
                _wait_for(lambda: bool(pair.status("egress")), "the egress answers")
                yield pair


@contextlib.contextmanager
def _process(role: str, file: Path, admin_port: int, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"GAPCONN_ADMIN_LISTEN": f"127.0.0.1:{admin_port}"}
    process = subprocess.Popen([sys.executable, "-m", "gapconn", role, str(file)], env=environment, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(condition: Any, what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.05)


def wait_until_still(read: Any, still_s: float = 1.0, timeout_s: float = 120) -> Any:
    """The value of `read()` once it has not changed for `still_s`."""
    deadline = time.monotonic() + timeout_s
    value, since = read(), time.monotonic()
    while time.monotonic() - since < still_s:
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to rest")
        time.sleep(0.05)
        now = read()
        if now != value:
            value, since = now, time.monotonic()
    return value
