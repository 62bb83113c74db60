"""generate → gap → discard at MTU 1500: the highest rate without loss, against plain UDP bursts without a protocol."""

from __future__ import annotations

import multiprocessing
import socket
import time
from multiprocessing.connection import Connection

from bench.measure import Figure, running_pair, wait_until_still

RECORD_BYTES = 65_536
SECONDS = 3
RATES_GBPS = (12, 10, 8, 7, 6, 5, 4, 3, 2)
SEGMENT_BYTES = 1472
BURST = bytes(SEGMENT_BYTES * 44)


def run() -> tuple[Figure, Figure]:
    """The pair at the highest of some rates at which nothing is lost; plain bursts as fast as they are received."""
    for rate in RATES_GBPS:
        figure = _pair(rate)
        if not figure.lost:
            break
    return figure, _plain()


def _pair(rate_gbps: int) -> Figure:
    count = rate_gbps * SECONDS * 1_000_000_000 // 8 // RECORD_BYTES
    source = f'type = "generate"\nsize_bytes = {RECORD_BYTES}\ncount = {count}'
    with running_pair(source, 'type = "discard"', rate=f"{rate_gbps} Gbit/s") as pair:
        pair.wait_active()
        started = time.monotonic()
        pair.ingress.wait(60)
        took = time.monotonic() - started
        sink = wait_until_still(lambda: pair.status("egress")["sink"])
    lost = count - sink["verified"]
    return Figure(
        what="generate → discard, 64 KiB records, MTU 1500",
        value=sink["verified"] * RECORD_BYTES * 8 / took / 1e9,
        unit="Gbit/s",
        lost=lost,
    )


def _plain() -> Figure:
    """One process sends bursts by GSO, one receives them by GRO; nothing is built, checked or kept."""
    ours, theirs = multiprocessing.Pipe()
    receiver = multiprocessing.Process(target=_receive, args=(theirs,))
    receiver.start()
    port = ours.recv()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        segment = [(17, 103, SEGMENT_BYTES.to_bytes(2, "little"))]
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            sender.sendmsg([BURST], segment, 0, ("127.0.0.1", port))
    got, took = ours.recv()
    receiver.join()
    return Figure(what="plain UDP bursts", value=got * 8 / took / 1e9, unit="Gbit/s")


def _receive(pipe: Connection) -> None:
    buffer = bytearray(65_536)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.setsockopt(17, 104, 1)
        receiver.bind(("127.0.0.1", 0))
        pipe.send(receiver.getsockname()[1])
        total = receiver.recv_into(buffer)
        started = last = time.monotonic()
        receiver.settimeout(1)
        try:
            while True:
                total += receiver.recv_into(buffer)
                last = time.monotonic()
        except TimeoutError:
            pipe.send((total, last - started))
