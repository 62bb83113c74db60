"""A lossy gap: a small relay that carries UDP datagrams one way, with faults.

It stands between an ingress and an egress, in tests, in the demo, and for anybody who wants to see what a pipeline
makes of loss:

    python -m gapconn.testing.gap 127.0.0.1:7401 127.0.0.1:7400 --drop 0.01 --reorder 0.01 --seed 7

Datagrams of any size pass, empty ones too. What goes wrong is in `gapconn.testing.faults`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import attrs
import click
import structlog
import trio

from gapconn import units
from gapconn.errors import LinkError
from gapconn.socket_buffers import dropped_datagrams, grow_receive_buffer
from gapconn.testing.faults import FaultPlan, Faults, GapCounts, GapSwitch, Outage, Train
from gapconn.units import Address

__all__ = ["FaultPlan", "GapCounts", "GapSwitch", "Outage", "relay"]

log = structlog.get_logger(__name__)

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_GSO_REFUSED: Final = frozenset({errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
_DATAGRAM_BYTES_MAX: Final = 65_535
_RECEIVE_BUFFER_BYTES: Final = 64 << 20
_ROUND_BYTES: Final = 1 << 20
"""Received before anything is sent on, at most: what came together is sent together."""
_ROUND_RECEIVES: Final = 256
_FINISH_LIMIT_S: Final = 1.0
"""How long datagrams are still taken after the end was asked for: a sender that does not stop must not keep us."""


async def relay(
    listen: Address,
    target: Address,
    plan: FaultPlan,
    counts: GapCounts,
    *,
    switch: GapSwitch | None = None,
    gso: bool = True,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Carry datagrams from `listen` to `target` until cancelled.

    When cancelled, it still takes what the kernel has received, and sends everything that it held back or delayed.

    Args:
        listen: Port 0 takes a free one.
        counts: Kept current.
        switch: To take the link away and give it back.
        gso: Receive and send several datagrams in one system call where the kernel can.
        task_status: Told the address that is listened on.

    Raises:
        LinkError: one of the addresses cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            receiver, listen_at = await _udp_socket(listen)
            stack.enter_context(receiver)
            receiver.bind(listen_at)
            sender, target_at = await _udp_socket(target)
            stack.enter_context(sender)
        except OSError as error:
            raise LinkError(f"the gap from {listen} to {target} cannot be opened: {error}") from error
        grow_receive_buffer(receiver, _RECEIVE_BUFFER_BYTES)
        now = trio.current_time()
        faults = Faults(plan, counts, started_at=now, switch=switch or GapSwitch())
        gap = _Relay(receiver=receiver, sender=sender, target=target_at, faults=faults, counts=counts, gso=gso)
        task_status.started(Address(*receiver.getsockname()[:2]))
        try:
            while True:
                with trio.move_on_at(faults.due):
                    await trio.lowlevel.wait_readable(receiver)
                gap.receive(trio.current_time())
                await gap.send(faults.outgoing(trio.current_time()))
        finally:
            with trio.CancelScope(shield=True):
                await gap.finish()


async def _udp_socket(address: Address) -> tuple[socket.socket, Any]:
    family, kind, protocol, _, found = (
        await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    )[0]
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    return sock, found


@attrs.define(kw_only=True)
class _Relay:
    """The two sockets. They are used without Trio's wrappers, which cost a scheduling round per datagram."""

    receiver: socket.socket
    sender: socket.socket
    """Not connected: a connected socket loses a datagram for each "port unreachable" that comes back."""
    target: Any
    faults: Faults
    counts: GapCounts
    gso: bool
    _buffer: memoryview = attrs.field(init=False)
    _refused: set[int] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self._buffer = memoryview(bytearray(_ROUND_BYTES + _DATAGRAM_BYTES_MAX))
        if self.gso:
            try:
                self.receiver.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            except OSError:
                self.gso = False

    def receive(self, now: float) -> int:
        """Take what the kernel has, up to the size of a round. Returns how many receives it was."""
        offset = receives = 0
        receive, ancillary_bytes = self.receiver.recvmsg_into, 64 if self.gso else 0
        while offset <= _ROUND_BYTES and receives < _ROUND_RECEIVES:
            try:
                size, ancillary, _, _ = receive([self._buffer[offset:]], ancillary_bytes)
            except BlockingIOError:
                break
            segment_bytes = size
            for level, kind, value in ancillary:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    (segment_bytes,) = struct.unpack("=i", value)
            self.faults.incoming(self._buffer[offset : offset + size], segment_bytes, now)
            offset += size
            receives += 1
        self.counts.kernel_dropped = dropped_datagrams(self.receiver)
        return receives

    async def send(self, trains: list[Train]) -> None:
        """Hand the datagrams to the kernel. Not interrupted: each is either sent or counted as unsent."""
        if not trains:
            return
        with trio.CancelScope(shield=True):
            for train in trains:
                if not self.gso or train.count == 1 or not await self._send_whole(train):
                    for datagram in train.datagrams():
                        await self._send_one(datagram)

    async def finish(self) -> None:
        """The last datagrams in, everything out."""
        until = trio.current_time() + _FINISH_LIMIT_S
        while self.receive(trio.current_time()) and trio.current_time() < until:
            await self.send(self.faults.outgoing(trio.current_time()))
        await self.send(self.faults.flush())

    async def _send_whole(self, train: Train) -> bool:
        """One send for the whole train; False when the kernel or the route cannot do that."""
        ancillary = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", train.segment_bytes))]
        while True:
            try:
                self.sender.sendmsg(train.parts, ancillary, 0, self.target)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sender)
            except OSError as error:
                if error.errno in _GSO_REFUSED:
                    return False
                self._count_unsent(train.count, error)
                return True
            else:
                self.counts.forwarded += train.count
                return True

    async def _send_one(self, datagram: memoryview) -> None:
        while True:
            try:
                self.sender.sendto(datagram, self.target)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sender)
            except OSError as error:
                self._count_unsent(1, error)
                return
            else:
                self.counts.forwarded += 1
                return

    def _count_unsent(self, count: int, error: OSError) -> None:
        self.counts.unsent += count
        if error.errno not in self._refused:  # each reason once: they come in thousands
            self._refused.add(error.errno or 0)
            log.warning("gap_send_failed", target=self.target, reason=str(error))


async def _run(
    listen: Address,
    target: Address,
    plan: FaultPlan,
    switch: GapSwitch,
    *,
    gso: bool,
    report_interval_s: float | None,
) -> None:
    counts = GapCounts()

    async def follow_signals(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGUSR1:
                    switch.toggle()
                elif number == signal.SIGUSR2:
                    switch.toggle_faults()
                else:
                    nursery.cancel_scope.cancel()

    def tell() -> None:
        _print({**attrs.asdict(counts), "on": switch.on, "faults": switch.faults})

    async def report(interval_s: float) -> None:
        while True:
            await trio.sleep(interval_s)
            tell()

    async with trio.open_nursery() as nursery:
        await nursery.start(follow_signals)
        address = await nursery.start(
            lambda task_status: relay(listen, target, plan, counts, switch=switch, gso=gso, task_status=task_status)
        )
        _print({"listening": str(address)})
        if report_interval_s is not None:
            nursery.start_soon(report, report_interval_s)
    tell()


def _print(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts))
    sys.stdout.flush()


def _parse_outage(text: str) -> Outage:
    start, separator, duration = text.partition(":")
    if not separator:
        raise ValueError("not START:DURATION, such as 5s:2s")
    return Outage(start_s=units.parse_seconds(start), duration_s=units.parse_seconds(duration))


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback for values that are written as in a configuration file."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(each) for each in value)
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


_ADDRESS: Final = _parsed(units.parse_address)
_SECONDS: Final = _parsed(units.parse_seconds)


@click.command(context_settings={"show_default": True})
@click.argument("listen", callback=_ADDRESS)
@click.argument("target", callback=_ADDRESS)
@click.option("--drop", type=float, default=0.0, help="Probability that a datagram is lost.")
@click.option("--burst", type=int, default=0, help="So many consecutive datagrams are lost,")
@click.option("--burst-every", type=int, default=1000, help="and then about so many are not.")
@click.option("--duplicate", type=float, default=0.0, help="Probability that a datagram comes twice.")
@click.option("--reorder", type=float, default=0.0, help="Probability that a datagram is held back.")
@click.option("--reorder-depth", type=int, default=8, help="It follows after 1 to so many later ones,")
@click.option("--reorder-hold", metavar="DURATION", callback=_SECONDS, default="5ms", help="or after this time.")
@click.option("--corrupt", type=float, default=0.0, help="Probability that one bit of a datagram is flipped.")
@click.option(
    "--delay", metavar="DURATION", callback=_SECONDS, default="0s", help="Every datagram comes so much later,"
)
@click.option("--jitter", metavar="DURATION", callback=_SECONDS, default="0s", help="and at random up to so much more.")
@click.option("--rate", default="unlimited", callback=_parsed(units.parse_rate), help='Such as "100 Mbit/s".')
@click.option("--queue", default="64 MiB", callback=_parsed(units.parse_bytes), help="What may wait for the rate.")
@click.option(
    "--outage",
    multiple=True,
    metavar="START:DURATION",
    callback=_parsed(_parse_outage),
    help='Link off, such as "5s:2s".',
)
@click.option("--seed", type=int, default=0, help="The same seed hits the same datagrams.")
@click.option("--off", is_flag=True, help="Begin with the link off.")
@click.option("--calm", is_flag=True, help="Begin with the faults off.")
@click.option("--gso/--no-gso", default=True, help="Several datagrams per system call where the kernel can.")
@click.option("--report", metavar="DURATION", callback=_SECONDS, default=None, help="Print the counts so often.")
def main(
    listen: Address,
    target: Address,
    *,
    drop: float,
    burst: int,
    burst_every: int,
    duplicate: float,
    reorder: float,
    reorder_depth: int,
    reorder_hold: float,
    corrupt: float,
    delay: float,
    jitter: float,
    rate: int,
    queue: int,
    outage: tuple[Outage, ...],
    seed: int,
    off: bool,
    calm: bool,
    gso: bool,
    report: float | None,
) -> None:
    """Carry UDP datagrams from LISTEN to TARGET, one way, with faults.

    Prints a line of JSON when it listens, and one with what it did when SIGTERM or SIGINT ends it. SIGUSR1 switches the
    link off and on again, SIGUSR2 the faults.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the lines of JSON
    try:
        plan = FaultPlan(
            drop=drop,
            burst=burst,
            burst_every=burst_every,
            duplicate=duplicate,
            reorder=reorder,
            reorder_depth=reorder_depth,
            reorder_hold_s=reorder_hold,
            corrupt=corrupt,
            delay_s=delay,
            jitter_s=jitter,
            rate_bps=rate,
            queue_bytes=queue,
            outages=outage,
            seed=seed,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    switch = GapSwitch(on=not off, faults=not calm)
    try:
        trio.run(lambda: _run(listen, target, plan, switch, gso=gso, report_interval_s=report))
    except* LinkError as group:
        raise click.ClickException(str(group.exceptions[0])) from group


if __name__ == "__main__":
    main()
