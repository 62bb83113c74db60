"""Millions of hostile datagrams at a running egress that serves a good ingress: `python -m bench.flood`.

Random bytes, truncated ones, valid ones with a flipped bit, valid ones of other links and sessions, valid checks over
absurd fields. Shows that it still serves, that memory stays flat, and under which reason each datagram was counted.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import time
from typing import Any

import attrs

from bench.measure import Pair, peak_bytes, running_pair, wait_until_still
from gapconn.protocol.wire import Header, check_of, encode_datagram

POOL = 20_000
"""Different datagrams; thrown again and again in changing bursts."""


def main() -> int:
    """Exit code 0 when every datagram was counted and the good data all arrived."""
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=float, default=10, help="datagrams to throw (default 10)")
    parser.add_argument("--rate", type=int, default=25_000, help="datagrams per second (default 25,000)")
    arguments = parser.parse_args()
    count = int(arguments.millions * 1_000_000)
    source = 'type = "generate"\nsize_bytes = 1024\nrate = "20 Mbit/s"'
    with running_pair(source, 'type = "discard"', rate="100 Mbit/s") as pair:
        pair.wait_active()
        before, memory_before = pair.status("egress"), peak_bytes(pair.egress.pid) / 2**20
        thrown = _throw(pair, count, arguments.rate, before["link_id"], before["epoch"])
        after, memory_after = (
            wait_until_still(lambda: None) or pair.status("egress"),
            peak_bytes(pair.egress.pid) / 2**20,
        )
        pair.ingress.terminate()
        pair.ingress.wait(30)
        end = wait_until_still(lambda: pair.status("egress")["received"]) and pair.status("egress")
    dropped = {k: v - before["dropped"].get(k, 0) for k, v in end["dropped"].items()}
    good = end["received"]["datagrams"] - sum(end["dropped"].values())
    kernel = end["missed"]["kernel_drops"]
    print(
        f"thrown {thrown:,}; received by the program {end['received']['datagrams']:,}; dropped by the kernel {kernel:,}"
    )
    print(f"most resident memory of the egress: {memory_before:.0f} MiB before, {memory_after:.0f} MiB after")
    print(
        f"good datagrams used {good:,}; records verified {end['sink']['verified']:,}, "
        f"{after['sink']['verified'] - before['sink']['verified']:,} of them while the flood ran; "
        f"missing {end['sink']['missing']:,}, damaged {end['sink']['damaged']}"
    )
    for reason, number in sorted(dropped.items(), key=lambda item: -item[1]):
        print(f"  {reason:22} {number:>12,}")
    counted = sum(dropped.values())
    print(f"counted under a reason {counted:,} of {thrown - kernel:,} that reached the program")
    return 0 if end["sink"]["damaged"] == 0 and counted >= thrown - kernel else 1


def _throw(pair: Pair, count: int, rate: int, link_id: int, epoch: int) -> int:
    host, _, port = pair.status("egress")["listens_on"].rpartition(":")
    chance = random.Random(7)
    pool = [_hostile(chance, link_id, epoch) for _ in range(POOL)]
    thrown = 0
    started = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while thrown < count:
            for datagram in chance.choices(pool, k=min(1000, count - thrown)):
                sender.sendto(datagram, (host, int(port)))
            thrown += min(1000, count - thrown)
            # This is about what the egress does with the datagrams, not about the kernel's buffer.
            time.sleep(max(0.0, started + thrown / rate - time.monotonic()))
    return thrown


def _hostile(chance: random.Random, link_id: int, epoch: int) -> bytes:
    good = encode_datagram(
        Header(
            type=2,
            link_id=link_id,
            epoch=epoch,
            sequence=chance.randrange(1000),
            symbol_bytes=400,
            message=chance.randrange(1000),
            message_bytes=4000,
            blocks=1,
            symbol=chance.randrange(10),
        ),
        chance.randbytes(400),
    )
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(1473))
    if kind == 1:
        return good[: chance.randrange(len(good))]
    if kind == 2:
        damaged = bytearray(good)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    header = Header.unpack(good)
    if kind == 3:
        return encode_datagram(attrs.evolve(header, link_id=chance.randrange(1, 2**32)), good[48:-8])
    if kind == 4:
        return encode_datagram(attrs.evolve(header, epoch=chance.randrange(epoch)), good[48:-8])
    absurd: dict[str, Any] = {
        chance.choice(["message_bytes", "symbol", "sequence", "message"]): chance.choice([0, 1, 2**31, 2**32 - 1]),
        chance.choice(["blocks", "repair_symbols", "key_id"]): chance.choice([0, 1, 254, 255]),
        "epoch": chance.randrange(epoch),
    }
    covered = attrs.evolve(header, **absurd).pack() + good[48:-8]
    return covered + check_of(covered).to_bytes(8, "big")


if __name__ == "__main__":
    sys.exit(main())
