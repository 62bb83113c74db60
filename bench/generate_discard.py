"""generate → gap → discard: self-checking records through a pair, at a given rate of its link."""

from __future__ import annotations

import time
from typing import Any

from bench.measure import Figure, Pair, lost, rebuilt, running_pair, wait_for

RECORD_BYTES = 65_536


def carry(rate_bps: int, seconds: float, *, mtu_bytes: int = 1500, link: str = "") -> Figure:
    """What the sink has verified per second, in a window of some seconds while records flow."""
    source = f'type = "generate"\nsize_bytes = {RECORD_BYTES}'
    with running_pair(source, 'type = "discard"', rate=rate_bps, mtu_bytes=mtu_bytes, link=link) as pair:
        pair.wait_active()
        wait_for(lambda: pair.status("egress")["sink"]["verified"], "records arrive")
        pair.count_cpu()
        before = pair.status("egress")
        time.sleep(seconds)
        after = pair.status("egress")
        moved_bytes = after["sink"]["bytes"] - before["sink"]["bytes"]
        cpu = pair.cpu_s_per_gb(moved_bytes)
        end = drain(pair)
    return Figure(
        what=f"generate → discard, records of 64 KiB, MTU {mtu_bytes}",
        value=moved_bytes * 8 / (after["uptime_s"] - before["uptime_s"]) / 1e9,
        unit="Gbit/s",
        lost=lost(end) + unverified(end),
        rate_bps=rate_bps,
        cpu_s_per_gb=cpu,
        detail={"missed": end["missed"], "rebuilt": rebuilt(end), "bytes": end["sink"]["bytes"]},
    )


def drain(pair: Pair) -> dict[str, Any]:
    """End the ingress; the status of the egress when everything that was under way has arrived."""
    pair.end_ingress()
    return pair.settled()


def unverified(egress: dict[str, Any]) -> int:
    """Records that the ingress announced at its end, and that the sink did not verify, or more than once."""
    sink, announced = egress["sink"], egress["announced"]
    return int(abs(announced["records"] - sink["verified"]) + sink["damaged"] + sink["duplicates"] + sink["missing"])
