"""tcp → gap → tcp, against a plain relay of two programs that pass the same stream on by TCP."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
import time

from bench.measure import Figure, free_port, running_pair

STREAM_BYTES = 2 << 30
CHUNK = bytes(1 << 20)
RATES_GBPS = (6, 5, 4, 3, 2)


def run() -> tuple[Figure, Figure]:
    """The pair at the highest of some rates at which the stream arrives whole; the relay as fast as it can."""
    for rate in RATES_GBPS:
        figure = _pair(rate)
        if not figure.lost:
            break
    return figure, _relay()


def _pair(rate_gbps: int) -> Figure:
    entry = free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:
        source = f'type = "tcp"\nlisten = "127.0.0.1:{entry}"'
        sink = f'type = "tcp"\nconnect = "127.0.0.1:{target.getsockname()[1]}"'
        with running_pair(source, sink, rate=f"{rate_gbps} Gbit/s") as pair:
            pair.wait_active()
            got, took = _stream(entry, target)
    return Figure(
        what="tcp → tcp, one stream of 2 GiB, MTU 1500",
        value=got * 8 / took / 1e9,
        unit="Gbit/s",
        lost=STREAM_BYTES - got,
    )


def _relay() -> Figure:
    with socket.create_server(("127.0.0.1", 0)) as target:
        second, first = free_port(), free_port()
        hops = [(second, target.getsockname()[1]), (first, second)]
        processes = [multiprocessing.Process(target=_pass_on, args=hop, daemon=True) for hop in hops]
        for process in processes:
            process.start()
        try:
            got, took = _stream(first, target)
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return Figure(what="plain relay of two programs", value=got * 8 / took / 1e9, unit="Gbit/s")


def _pass_on(entry: int, target: int) -> None:
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_server(("127.0.0.1", entry)) as server:
        client, _ = server.accept()
        with client, _connect(target) as out:
            while got := client.recv_into(buffer):
                out.sendall(buffer[:got])


def _connect(port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _stream(entry: int, target: socket.socket) -> tuple[int, float]:
    """Send the stream into `entry`, read it at `target`: bytes that arrived, and seconds from the first to the last."""

    def send() -> None:
        with contextlib.suppress(ConnectionError), _connect(entry) as client:
            for _ in range(STREAM_BYTES // len(CHUNK)):
                client.sendall(CHUNK)

    sender = threading.Thread(target=send)
    sender.start()
    buffer = bytearray(1 << 20)
    client, _ = target.accept()
    got, started = 0, time.monotonic()
    with client, contextlib.suppress(ConnectionError):
        while size := client.recv_into(buffer):
            got += size
    took = time.monotonic() - started
    sender.join()
    return got, took
