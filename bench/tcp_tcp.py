"""tcp → gap → tcp: one stream through a pair, at a given rate of its link."""

from __future__ import annotations

import socket

from bench.measure import Figure, free_port, lost, rebuilt, running_pair
from bench.relay import stream


def carry(rate_bps: int, seconds: float, *, mtu_bytes: int = 1500, link: str = "") -> Figure:
    """What arrives of a stream that is sent for some seconds, as fast as the ingress takes it."""
    entry = free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:
        source = f'type = "tcp"\nlisten = "127.0.0.1:{entry}"'
        sink = f'type = "tcp"\nconnect = "127.0.0.1:{target.getsockname()[1]}"'
        with running_pair(source, sink, rate=rate_bps, mtu_bytes=mtu_bytes, link=link) as pair:
            pair.wait_active()
            streamed = stream(entry, target, seconds)
            cpu = pair.cpu_s_per_gb(streamed.got_bytes)
            egress = pair.settled()
    return Figure(
        what=f"tcp → tcp, one stream, MTU {mtu_bytes}",
        value=streamed.gbps,
        unit="Gbit/s",
        lost=lost(egress) + streamed.sent_bytes - streamed.got_bytes,
        rate_bps=rate_bps,
        cpu_s_per_gb=cpu,
        detail={"missed": egress["missed"], "rebuilt": rebuilt(egress), "bytes": streamed.got_bytes},
    )
