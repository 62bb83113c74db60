"""The yardstick of streams: a plain relay of two programs that pass a TCP stream on."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
import time

import attrs

from bench.measure import Figure, free_port

CHUNK = bytes(1 << 20)


@attrs.frozen
class Streamed:
    """What became of a stream."""

    sent_bytes: int
    got_bytes: int
    took_s: float

    @property
    def gbps(self) -> float:
        """What arrived, in Gbit/s."""
        return self.got_bytes * 8 / self.took_s / 1e9


def relay(seconds: float) -> Figure:
    """As fast as two programs with buffers of 1 MiB take it."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        second, first = free_port(), free_port()
        hops = [(second, target.getsockname()[1]), (first, second)]
        processes = [multiprocessing.Process(target=_pass_on, args=hop, daemon=True) for hop in hops]
        for process in processes:
            process.start()
        try:
            streamed = stream(first, target, seconds)
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return Figure(
        what="plain relay of two programs",
        value=streamed.gbps,
        unit="Gbit/s",
        lost=streamed.sent_bytes - streamed.got_bytes,
    )


def stream(entry: int, target: socket.socket, seconds: float) -> Streamed:
    """Send into the port `entry` for some seconds, and read at `target` until the end of the stream."""
    sent_bytes = 0

    def send() -> None:
        nonlocal sent_bytes
        with contextlib.suppress(ConnectionError), connect(entry) as client:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                client.sendall(CHUNK)
                sent_bytes += len(CHUNK)

    sender = threading.Thread(target=send)
    sender.start()
    buffer = bytearray(1 << 20)
    client, _ = target.accept()
    got_bytes, started_s = 0, time.monotonic()
    with client, contextlib.suppress(ConnectionError):
        while size := client.recv_into(buffer):
            got_bytes += size
    took_s = time.monotonic() - started_s
    sender.join()
    return Streamed(sent_bytes, got_bytes, took_s)


def connect(port: int) -> socket.socket:
    """A connection to a port of this host that will soon be listened on."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


def _pass_on(entry: int, target: int) -> None:
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_server(("127.0.0.1", entry)) as server:
        client, _ = server.accept()
        with client, connect(target) as out:
            while got := client.recv_into(buffer):
                out.sendall(buffer[:got])
