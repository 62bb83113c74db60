"""generate → a gap that loses → discard: whether everything crosses whole, by repair alone."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.generate_discard import RECORD_BYTES, drain, unverified
from bench.measure import Figure, free_port, note_peak, rebuilt, running_pair

RANDOM = ("--drop", "0.05")
"""Each datagram is lost with a probability of 5 %."""
BURSTS = ("--burst", "30", "--burst-every", "970")
"""30 datagrams in a row are lost, then 485 to 1455 are not: 3 % in all."""

PROBES_MAX = 6
PROBE_SHARE = 20
"""Of all the bytes, a short trial carries one in so many."""
CAUTION = 0.8
"""A long trial meets more of a machine's moods than a short one."""


def carry_whole(faults: tuple[str, ...], guess_bps: int, total_bytes: int, *, link: str) -> Figure:
    """Carry `total_bytes` at a rate at which this machine itself loses nothing, which a short trial finds first."""
    rate_bps = guess_bps
    for _ in range(PROBES_MAX):
        probe = carry(faults, rate_bps, total_bytes // PROBE_SHARE, link=link)
        if not probe.detail["dropped_by_host"]:
            break
        rate_bps = int(rate_bps / 1.5)
    return carry(faults, int(rate_bps * CAUTION), total_bytes, link=link)


def carry(faults: tuple[str, ...], rate_bps: int, total_bytes: int, *, link: str) -> Figure:
    """Seconds are what they are: it ends when `total_bytes` were sent."""
    ports = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    source = f'type = "generate"\nsize_bytes = {RECORD_BYTES}\ncount = {total_bytes // RECORD_BYTES}'
    with (
        _gap(ports, faults) as counts,
        running_pair(source, 'type = "discard"', rate=rate_bps, link=link, through=ports) as pair,
    ):
        pair.wait_active()
        started_s, cpu = time.monotonic(), {}
        while pair.ingress.poll() is None:  # it ends by itself
            note_peak("ingress", pair.ingress)
            status = pair.status("egress")
            with contextlib.suppress(FileNotFoundError, IndexError):
                cpu = pair.cpu_s_per_gb(status["sink"]["bytes"])
            time.sleep(0.2)
        took_s = time.monotonic() - started_s
        end = drain(pair)
    return Figure(
        what=f"generate → discard, {' '.join(faults)}",
        value=100 * end["sink"]["verified"] / (total_bytes // RECORD_BYTES),
        unit="% whole",
        lost=unverified(end),
        rate_bps=rate_bps,
        cpu_s_per_gb=cpu,
        detail={
            "bytes": end["sink"]["bytes"],
            "gbps": end["sink"]["bytes"] * 8 / took_s / 1e9,
            "missed": end["missed"],
            "rebuilt": rebuilt(end),
            "gap": counts,
            "dropped_by_host": end["missed"]["kernel_drops"] + counts["kernel_dropped"],
        },
    )


@contextlib.contextmanager
def _gap(ports: tuple[int, int], faults: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The relay of gapconn.testing; what it counted is there when it has ended."""
    listen, target = (f"127.0.0.1:{port}" for port in ports)
    counts: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "gapconn.testing.gap", listen, target, *faults, "--seed", "7"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it listens
        yield counts
        process.send_signal(signal.SIGTERM)
        counts.update(json.loads(process.stdout.readline()))
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
