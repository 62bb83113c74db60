"""Hundreds of thousands of datagrams that should not be there: each is counted, none of them matters."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest

from gapconn.link.udp import SOL_UDP, UDP_SEGMENT
from gapconn.protocol.registry import DatagramType, Flag
from gapconn.protocol.wire import Header, encode_datagram
from tests.processes.ends import End, Ends

TRAINS = 3_000
"""Of 64 equal datagrams, sent and received at once: what a flood looks like where the kernel joins it."""
SINGLES = 20_000


@attrs.frozen
class Hostile:
    """Makes datagrams that an egress must not use, though many of them look like its own."""

    chance: random.Random
    link_id: int
    epoch: int

    def valid(self, size: int) -> bytes:
        """A datagram that was received before: its sequence is one of the first."""
        header = Header(
            type=DatagramType.DATA,
            link_id=self.link_id,
            epoch=self.epoch,
            sequence=self.chance.randrange(3, 50),
            symbol_bytes=size,
            message=self.chance.randrange(3),
            message_bytes=10 * size,
            blocks=1,
            symbol=self.chance.randrange(10),
        )
        change = self.chance.randrange(9)
        if change == 0:
            header = attrs.evolve(header, link_id=self.chance.randrange(1, 2**32))
        elif change == 1:
            header = attrs.evolve(header, epoch=self.epoch + self.chance.randrange(1, 2**40))
        elif change == 2:
            header = attrs.evolve(header, epoch=self.chance.randrange(1, self.epoch))
        elif change == 3:
            header = attrs.evolve(header, type=self.chance.randrange(5, 256))
        elif change == 4:
            header = attrs.evolve(header, symbol=self.chance.randrange(10, 2**32))
        elif change == 5:
            header = attrs.evolve(header, flags=Flag.SEALED)
        elif change == 6:
            header = attrs.evolve(header, version=self.chance.randrange(2, 256))
        elif change == 7:
            header = attrs.evolve(header, type=DatagramType.HEARTBEAT)
        return encode_datagram(header, self.chance.randbytes(size))

    def flipped(self, size: int) -> bytes:
        datagram = bytearray(self.valid(size))
        datagram[self.chance.randrange(len(datagram))] ^= 1 << self.chance.randrange(8)
        return bytes(datagram)

    def truncated(self, size: int) -> bytes:
        datagram = self.valid(size)
        return datagram[: self.chance.randrange(len(datagram))]

    def noise(self, size: int) -> bytes:
        return self.chance.randbytes(size)

    def single(self) -> bytes:
        make: Callable[[int], bytes] = self.chance.choice([self.valid, self.flipped, self.truncated, self.noise])
        return make(self.chance.choice([1, 30, 56, 100, 300, 1000, 1416]))

    def train(self) -> tuple[int, bytes]:
        """64 datagrams of one size, most of them damaged in some way; their size, and all together."""
        make: Callable[[int], bytes] = self.chance.choice([self.valid, self.flipped, self.noise])
        size = self.chance.choice([1, 56, 100, 300, 900])
        few = [make(size) for _ in range(4)]
        return len(few[0]), b"".join(self.chance.choice(few) for _ in range(64))


def resident_bytes(end: End) -> int:
    with open(f"/proc/{end.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.req("GC-MOD-5", "GC-MOD-6", "GC-LIM-1")
async def test_a_flood_of_hostile_datagrams(ends: Ends) -> None:
    source = 'type = "generate"\nsize_bytes = 500\nrate = "2 Mbit/s"'
    # Nobody is to be called silent, however slow this machine is: the link would be free for the next session heard.
    ends.configure(source, 'type = "discard"', rate="10 Mbit/s", interruption_timeout="1h", fec={"repair": "0%"})
    ends.remember_a_session()
    egress = await ends.egress()
    ingress = await ends.ingress()
    status = await egress.until_status(lambda s: s["received"]["datagrams"] > 100, "some data has arrived")
    chance = random.Random(5)
    hostile = Hostile(chance, status["link_id"], status["epoch"])
    trains = [hostile.train() for _ in range(TRAINS // 10)]
    singles = [hostile.single() for _ in range(SINGLES // 10)]
    to = (ends.address.host, ends.address.port)
    thrown = 0
    resident: list[int] = []

    def throw(sender: socket.socket) -> Iterator[int]:
        """A part of the flood at a time: how many datagrams."""
        for part in range(20):
            for size, whole in chance.sample(trains, TRAINS // 20):
                sender.sendmsg([whole], [(SOL_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))], 0, to)
            for datagram in chance.sample(singles, SINGLES // 20):
                sender.sendto(datagram, to)
            yield 64 * (TRAINS // 20) + SINGLES // 20
            if part in (4, 19):
                resident.append(resident_bytes(egress))

    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        for count in throw(sender):
            thrown += count
            # This is about what the egress does with them, not about the kernel's buffer.
            await egress.until_status(
                lambda s: sum(s["dropped"].values()) >= thrown,  # noqa: B023 - called before the next round
                f"all of {thrown} datagrams are counted",
            )
    before = status["sink"]["verified"]
    status = await egress.until_status(lambda s: s["sink"]["verified"] > before + 500, "the good ingress is served")
    assert await ingress.stop() == 0
    ended = await egress.wait_logged("session_ended")
    status = await egress.until_status(lambda s: s["state"] == "closed", "the session is over")
    assert thrown == 64 * TRAINS + SINGLES
    assert status["missed"]["kernel_drops"] == 0
    assert sum(status["dropped"].values()) == thrown, "each under one reason, and none of the good ones"
    assert status["dropped"].keys() == {
        "too_short",
        "bad_magic",
        "unsupported_version",
        "wrong_security_mode",
        "bad_check",
        "foreign_link",
        "unknown_type",
        "malformed",
        "stale_session",
        "conflict",
        "duplicate",
    }
    assert status["missed"]["datagrams"] == 0
    facts = status["sink"]
    assert facts["verified"] == ended["records_sent"]
    assert (facts["missing"], facts["damaged"], facts["duplicates"]) == (0, 0, 0)
    assert resident[1] - resident[0] < 20 << 20, "memory does not grow with the flood"
    assert len(egress.log) < 1_000, "and neither does the log"
    assert await egress.stop() == 0
