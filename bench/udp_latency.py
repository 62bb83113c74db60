"""udp → gap → udp, a message at a time: what the pair adds to the latency of direct UDP. `python -m bench.udp_latency`.

One process sends, another receives; blocks of messages go to the receiver directly and through the pair in turn, so
that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import time
from multiprocessing.connection import Connection

import attrs

from bench.measure import free_port, running_pair

MESSAGE_BYTES = 200
MESSAGES_PER_S = 1_000
BLOCK_MESSAGES = 500
WARM_UP_MESSAGES = 200
_SILENCE_S = 1.0
"""What has not arrived so long after the last message is lost."""


@attrs.frozen(kw_only=True)
class UdpLatency:
    """Latencies in milliseconds, and what did not arrive."""

    direct_ms: list[float]
    """Sorted."""
    pair_ms: list[float]
    """Sorted."""
    lost: int

    def added_ms(self, share: float) -> float:
        """What the pair adds at the quantile `share`."""
        return _quantile(self.pair_ms, share) - _quantile(self.direct_ms, share)


def run(blocks: int = 10) -> UdpLatency:
    """`blocks` blocks of messages each way, in turn."""
    entry = free_port(socket.SOCK_DGRAM)
    ours, theirs = multiprocessing.Pipe()
    receiver = multiprocessing.Process(target=_receive, args=(theirs,), daemon=True)
    receiver.start()
    target = ours.recv()
    source = f'type = "udp"\nlisten = "127.0.0.1:{entry}"'
    sink = f'type = "udp"\nsend_to = "127.0.0.1:{target}"'
    direct: list[float] = []
    pair: list[float] = []
    with (
        running_pair(source, sink, rate="1 Gbit/s") as running,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        running.wait_active()
        _block(sender, entry, ours, WARM_UP_MESSAGES)
        for _ in range(blocks):
            direct += _block(sender, target, ours, BLOCK_MESSAGES)
            pair += _block(sender, entry, ours, BLOCK_MESSAGES)
    receiver.terminate()
    receiver.join()
    return UdpLatency(
        direct_ms=sorted(direct), pair_ms=sorted(pair), lost=2 * blocks * BLOCK_MESSAGES - len(direct) - len(pair)
    )


def _block(sender: socket.socket, port: int, receiver: Connection, count: int) -> list[float]:
    """Send `count` messages evenly; the latencies of those that arrived, in milliseconds."""
    receiver.send(count)
    receiver.recv()
    padding = bytes(MESSAGE_BYTES - 8)
    due = time.monotonic()
    for _ in range(count):
        due += 1 / MESSAGES_PER_S
        time.sleep(max(0.0, due - time.monotonic()))
        sender.sendto(time.monotonic_ns().to_bytes(8, "big") + padding, ("127.0.0.1", port))
    latencies: list[float] = receiver.recv()
    return latencies


def _receive(pipe: Connection) -> None:
    """For each number that is asked for, receive so many messages; answer with their latencies."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(_SILENCE_S)
        pipe.send(receiver.getsockname()[1])
        while True:
            count = pipe.recv()
            pipe.send("ready")
            latencies: list[float] = []
            try:
                while len(latencies) < count:
                    sent_ns = int.from_bytes(receiver.recv(65_535)[:8], "big")
                    latencies.append((time.monotonic_ns() - sent_ns) / 1e6)
            except TimeoutError:
                pass
            pipe.send(latencies)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.udp_latency", description=__doc__)
    parser.add_argument("--blocks", type=int, default=10, help=f"blocks of {BLOCK_MESSAGES} messages (default 10)")
    got = run(parser.parse_args().blocks)
    print("| quantile | direct UDP (ms) | through the pair (ms) | added (ms) |")
    print("| --- | --- | --- | --- |")
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        print(
            f"| {name} | {_quantile(got.direct_ms, share):.3f} | {_quantile(got.pair_ms, share):.3f} "
            f"| {got.added_ms(share):.3f} |"
        )
    mean = statistics.mean(got.pair_ms) - statistics.mean(got.direct_ms)
    print(f"{len(got.pair_ms)} messages of {MESSAGE_BYTES} B each way, {got.lost} lost; mean added {mean:.3f} ms")
    return 0 if not got.lost else 1


if __name__ == "__main__":
    sys.exit(main())
