"""What the benchmarks share: a figure, and a pair of real processes on loopback with what they cost."""

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

ROLES = ("ingress", "egress")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ingress_state = tempfile.TemporaryDirectory(prefix="gapconn-bench-")
"""Of all pairs of this run, one after the other: as in production, only the first one ever announces itself."""


@attrs.frozen(kw_only=True)
class Figure:
    """One measurement."""

    what: str
    value: float
    unit: str
    lost: int = 0
    """What was sent and did not arrive: datagrams of the link and what was in them."""
    rate_bps: int = 0
    """The configured rate of the link; 0: it has none."""
    cpu_s_per_gb: dict[str, float] = attrs.field(factory=dict)
    """Seconds of CPU per 10^9 bytes of payload, by role."""
    detail: dict[str, Any] = attrs.field(factory=dict)
    """Anything else worth keeping."""

    def __str__(self) -> str:
        digits = 0 if abs(self.value) >= 1000 else 1 if abs(self.value) >= 100 else 2
        return f"{self.value:,.{digits}f} {self.unit}"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a running process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_bytes(pid: int) -> int:
    """Most resident memory that a running process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the peak of resident memory")


peaks_bytes: dict[str, int] = {}
"""Most resident memory that an end of any pair had, by role, since this was cleared."""


def note_peak(role: str, process: subprocess.Popen[bytes]) -> None:
    """Take the memory of a process into account, if it still runs."""
    with contextlib.suppress(FileNotFoundError, RuntimeError):
        if process.poll() is None:
            peaks_bytes[role] = max(peaks_bytes.get(role, 0), peak_bytes(process.pid))


@attrs.define(kw_only=True)
class Pair:
    """A running pair."""

    ingress: subprocess.Popen[bytes]
    egress: subprocess.Popen[bytes]
    ingress_admin: int
    egress_admin: int
    _cpu_before_s: dict[str, float] = attrs.field(init=False, factory=dict)

    def status(self, role: str) -> dict[str, Any]:
        """What `/status` of that end says."""
        port = self.ingress_admin if role == "ingress" else self.egress_admin
        return _status(port)

    def wait_active(self) -> None:
        """Until the session is followed and data may flow. CPU is counted from here on."""
        wait_for(lambda: self.status("egress")["state"] == "following", "the egress follows the session")
        wait_for(lambda: self.status("ingress")["state"] == "active", "the ingress is active")
        self.count_cpu()

    def count_cpu(self) -> None:
        """Count CPU from here on."""
        self._cpu_before_s = {role: cpu_s(getattr(self, role).pid) for role in ROLES}

    def cpu_s_per_gb(self, payload_bytes: float) -> dict[str, float]:
        """By role, since CPU is counted; in that time they carried `payload_bytes`. Both must run."""
        used_s = {role: cpu_s(getattr(self, role).pid) - self._cpu_before_s[role] for role in ROLES}
        return {role: seconds / max(1, payload_bytes) * 1e9 for role, seconds in used_s.items()}

    def end_ingress(self) -> None:
        """Ask the ingress for an orderly end, and wait for it."""
        note_peak("ingress", self.ingress)
        self.ingress.terminate()
        self.ingress.wait(60)

    def settled(self) -> dict[str, Any]:
        """The status of the egress once nothing more arrives and the sink has accepted everything."""
        return wait_until_still(  # type: ignore[no-any-return]  # it is what its argument returns
            lambda: self.status("egress"),
            key=lambda status: (
                status["received"]["messages"],
                status["missed"],
                status["held"]["incomplete_messages"],
                status["held"]["unaccepted_messages"],
            ),
        )


def lost(egress: dict[str, Any]) -> int:
    """Everything that an egress says in its status to have missed: datagrams, messages, what the sink lost."""
    missed = egress["missed"]
    return int(
        missed["datagrams"]
        + sum(missed["messages"].values())
        + sum(missed["refused_messages"].values())
        + sum(missed["sink_losses"].values())
    )


def rebuilt(egress: dict[str, Any]) -> int:
    """Lost datagrams that an egress has rebuilt from repair symbols, by its status."""
    return int(egress["received"]["symbols_rebuilt"])


def link_sections(*, repair: str | None = None, key_file: Path | None = None) -> str:
    """The sections of a link: forward error correction with that repair, and AES-256-GCM with the keys of that file."""
    sections = []
    if repair is not None:
        sections.append(f'[link.fec]\nrepair = "{repair}"')
    if key_file is not None:
        sections.append(f'[link.security]\nmode = "aes-256-gcm"\nkey_file = "{key_file}"')
    return "\n".join(sections)


@contextlib.contextmanager
def running_pair(
    source: str,
    sink: str,
    *,
    rate: str | int,
    mtu_bytes: int = 1500,
    link: str = "",
    through: tuple[int, int] | None = None,
) -> Iterator[Pair]:
    """Two `gapconn` processes with the default configuration, but for what is given.

    Args:
        source: The lines of its section.
        sink: The lines of its section.
        rate: Of the link, as in a configuration file.
        mtu_bytes: Of the link.
        link: Further lines of `[link]`, and its sections (`link_sections`).
        through: Ports of a relay between the two: where it listens, and where it sends to. None: there is none.
    """
    entry, exit_ = through or (free_port(socket.SOCK_DGRAM),) * 2
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory:
        file = Path(directory) / "pair.toml"
        file.write_text(
            f"""[link]
name = "bench"
address = "127.0.0.1:{entry}"
bind = "127.0.0.1:{exit_}"
mtu_bytes = {mtu_bytes}
rate = {json.dumps(rate)}
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
        states = {"ingress": _ingress_state.name, "egress": f"{directory}/state"}
        with open(Path(directory) / "log", "w+b") as log:
            ports = {"egress": free_port(), "ingress": free_port()}
            with contextlib.ExitStack() as running:

                def start(role: str) -> subprocess.Popen[bytes]:
                    return running.enter_context(_process(role, file, ports[role], states[role], log))

                try:
                    egress = start("egress")
                    # What an ingress sends before the egress listens is lost.
                    wait_for(lambda: _status(ports["egress"]), "the egress answers")
                    yield Pair(
                        ingress=start("ingress"),
                        egress=egress,
                        ingress_admin=ports["ingress"],
                        egress_admin=ports["egress"],
                    )
                except Exception:
                    log.seek(0)
                    sys.stderr.write(log.read().decode(errors="replace")[-4000:])
                    raise


def _status(admin_port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/status", timeout=30) as answer:
        status: dict[str, Any] = json.load(answer)
        return status


@contextlib.contextmanager
def _process(
    role: str, file: Path, admin_port: int, state_directory: str, log: Any
) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "GAPCONN_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
        "GAPCONN_LINK_STATE_DIRECTORY": state_directory,
    }
    process = subprocess.Popen([sys.executable, "-m", "gapconn", role, str(file)], env=environment, stderr=log)
    try:
        yield process
    finally:
        note_peak(role, process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for(condition: Any, what: str, timeout_s: float = 30) -> None:
    """Until `condition()` is true; while it raises OSError, it is not."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.02)


def wait_until_still(read: Any, *, key: Any = lambda value: value, still_s: float = 0.7, timeout_s: float = 120) -> Any:
    """The value of `read()` once it (or the `key` of it) has not changed for `still_s`."""
    deadline = time.monotonic() + timeout_s
    value, since = read(), time.monotonic()
    while time.monotonic() - since < still_s:
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to rest")
        time.sleep(0.05)
        now = read()
        if key(now) != key(value):
            since = time.monotonic()
        value = now
    return value
