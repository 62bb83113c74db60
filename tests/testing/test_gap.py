"""The relay over real sockets and as a process: datagrams of any size, exact counts, nothing left behind at the end."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import pytest
import trio

from gapconn.errors import LinkError
from gapconn.testing.gap import FaultPlan, GapCounts, GapSwitch, relay
from gapconn.units import Address

GSO = pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain"])
NOWHERE = Address("127.0.0.1", 9)


@attrs.define
class Target:
    """Where the relay sends to."""

    sock: socket.socket
    got: list[bytes] = attrs.field(factory=list)

    @property
    def address(self) -> Address:
        return Address(*self.sock.getsockname()[:2])

    async def wait_for(self, count: int) -> list[bytes]:
        """The next `count` datagrams."""
        with trio.fail_after(10):
            while len(self.got) < count:
                await trio.lowlevel.wait_readable(self.sock)
                self.take()
        got, self.got = self.got[:count], self.got[count:]
        return got

    def take(self) -> list[bytes]:
        """Also what has arrived until now."""
        while True:
            try:
                self.got.append(self.sock.recv(1 << 16))
            except BlockingIOError:
                return self.got


@contextmanager
def udp_socket(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, 0))
        yield sock


@asynccontextmanager
async def gap_to(
    target: Address, plan: FaultPlan, counts: GapCounts, *, listen: str = "127.0.0.1", **options: Any
) -> AsyncIterator[Callable[[bytes], Any]]:
    """A running relay; the value sends a datagram to it."""
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Address]) -> None:
            await relay(Address(listen, 0), target, plan, counts, task_status=task_status, **options)

        address: Address = await nursery.start(run)
        with udp_socket(listen) as sender:
            sender.connect((address.host, address.port))
            yield sender.send
        nursery.cancel_scope.cancel()


@GSO
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_of_any_size_pass(gso: bool, host: str) -> None:
    sizes = [0, 1, 1472, 0, 0, 1473, 9000, 40_000, 40_000, 65_507, 0, 7]
    sent = [bytes([n]) * size for n, size in enumerate(sizes)]
    counts = GapCounts()
    with udp_socket(host) as sock:
        target = Target(sock)
        async with gap_to(target.address, FaultPlan(), counts, listen=host, gso=gso) as send:
            for datagram in sent:
                send(datagram)
            assert await target.wait_for(len(sent)) == sent
    assert counts == GapCounts(received=len(sent), forwarded=len(sent))


@GSO
@pytest.mark.parametrize("size", [1, 60, 1472])
async def test_segmented_sends_pass_whole(gso: bool, size: int) -> None:
    """A sender that hands the kernel many datagrams at once, the last one shorter."""
    last = b"" if size == 1 else b"\xff" * (size // 2)
    sent = [bytes([n]) * size for n in range(43)] + ([last] if last else [])
    counts = GapCounts()
    with udp_socket() as sock, udp_socket() as sender:
        target = Target(sock)
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Address]) -> None:
                await relay(
                    Address("127.0.0.1", 0), target.address, FaultPlan(), counts, gso=gso, task_status=task_status
                )

            address: Address = await nursery.start(run)
            for _ in range(5):
                sender.sendmsg([b"".join(sent)], [(17, 103, struct.pack("=H", size))], 0, (address.host, address.port))
            assert await target.wait_for(5 * len(sent)) == 5 * sent
            nursery.cancel_scope.cancel()
    assert counts == GapCounts(received=5 * len(sent), forwarded=5 * len(sent))


@GSO
async def test_what_arrives_is_what_was_counted(gso: bool) -> None:
    plan = FaultPlan(drop=0.05, duplicate=0.05, reorder=0.05, seed=4)
    sent = [n.to_bytes(4, "big") * 300 for n in range(3000)]
    counts = GapCounts()
    with udp_socket() as sock:
        target = Target(sock)
        async with gap_to(target.address, plan, counts, gso=gso) as send:
            for start in range(0, len(sent), 100):
                for datagram in sent[start : start + 100]:
                    send(datagram)
                await trio.lowlevel.checkpoint()
                target.take()
        got = target.take()
    assert counts.kernel_dropped == 0
    assert counts.received == len(sent)
    assert counts.forwarded == len(got) == len(sent) - counts.dropped + counts.duplicated
    assert len(set(got)) == len(sent) - counts.dropped
    assert min(counts.dropped, counts.duplicated, counts.reordered) > 80
    assert got != sorted(got)


@GSO
async def test_at_the_end_nothing_is_left_behind(gso: bool) -> None:
    plan = FaultPlan(delay_s=60, reorder=0.5, reorder_hold_s=60)
    sent = [n.to_bytes(4, "big") for n in range(200)]
    counts = GapCounts()
    with udp_socket() as sock:
        target = Target(sock)
        async with gap_to(target.address, plan, counts, gso=gso) as send:
            for datagram in sent[:100]:
                send(datagram)
            with trio.fail_after(10):
                while counts.received < 100:  # noqa: ASYNC110 - the relay says nothing when it holds a datagram
                    await trio.sleep(0.001)
            for datagram in sent[100:]:
                send(datagram)
            # The relay is cancelled before it could look at the second half.
        got = target.take()
    assert sorted(got) == sent
    assert counts.received == counts.forwarded == 200


async def test_a_delay_takes_its_time() -> None:
    counts = GapCounts()
    with udp_socket() as sock:
        target = Target(sock)
        async with gap_to(target.address, FaultPlan(delay_s=0.05), counts) as send:
            started_at = trio.current_time()
            send(b"late")
            assert await target.wait_for(1) == [b"late"]
            assert 0.05 <= trio.current_time() - started_at < 5


async def test_the_switch_takes_the_link_away_and_gives_it_back() -> None:
    counts, switch = GapCounts(), GapSwitch(on=False)
    with udp_socket() as sock:
        target = Target(sock)
        async with gap_to(target.address, FaultPlan(), counts, switch=switch) as send:
            send(b"lost")
            with trio.fail_after(10):
                while not counts.cut:  # noqa: ASYNC110 - the relay says nothing when it loses a datagram
                    await trio.sleep(0.001)
            switch.toggle()
            send(b"kept")
            assert await target.wait_for(1) == [b"kept"]
    assert counts == GapCounts(received=2, forwarded=1, cut=1)


async def test_a_target_that_is_away_costs_nothing_later() -> None:
    counts = GapCounts()
    with udp_socket() as sock:
        target = Target(sock)
        address = target.address
    async with gap_to(address, FaultPlan(), counts) as send:
        for n in range(10):
            send(b"nobody")
            with trio.fail_after(10):
                while counts.forwarded <= n:  # noqa: ASYNC110 - nothing arrives anywhere
                    await trio.sleep(0.001)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind((address.host, address.port))
            send(b"somebody")
            assert await Target(sock).wait_for(1) == [b"somebody"]
    assert counts == GapCounts(received=11, forwarded=11)


async def test_what_the_kernel_refuses_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    counts = GapCounts()
    async with gap_to(Address("255.255.255.255", 9), FaultPlan(), counts) as send:  # broadcast is not allowed
        for _ in range(5):
            send(b"x" * 100)
        with trio.fail_after(10):
            while counts.unsent < 5:  # noqa: ASYNC110 - nothing arrives anywhere
                await trio.sleep(0.001)
    assert counts == GapCounts(received=5, unsent=5)
    assert capsys.readouterr().out.count("gap_send_failed") == 1


async def test_addresses_that_cannot_be_used_are_explained() -> None:
    for listen, target in ((Address("192.0.2.1", 1), NOWHERE), (Address("127.0.0.1", 0), Address("no.invalid", 1))):
        with pytest.raises(LinkError, match=f"the gap from {listen} to {target} cannot be opened"):
            await relay(listen, target, FaultPlan(), GapCounts())


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-m", "gapconn.testing.gap", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


async def test_as_a_process_with_signals() -> None:
    with udp_socket() as sock, udp_socket() as sender:
        target = Target(sock)
        options = ("--duplicate", "1", "--seed", "7", "--report", "10ms")
        with process("127.0.0.1:0", str(target.address), *options) as running:
            assert running.stdout is not None

            async def next_line(condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
                while True:
                    assert running.stdout is not None
                    line: dict[str, Any] = json.loads(await trio.to_thread.run_sync(running.stdout.readline))
                    if condition(line):
                        return line

            with trio.fail_after(20):
                listening = (await next_line(lambda line: True))["listening"]
                sender.connect(("127.0.0.1", int(listening.rpartition(":")[2])))
                sender.send(b"first")
                assert await target.wait_for(2) == [b"first", b"first"]
                running.send_signal(signal.SIGUSR1)
                cut = 0
                while not cut:  # the signal takes its time
                    sender.send(b"lost?")
                    cut = (await next_line(lambda line: True))["cut"]
                running.send_signal(signal.SIGUSR1)
                target.take().clear()
                while not target.got:
                    sender.send(b"again")
                    await next_line(lambda line: True)
                    target.take()
                running.send_signal(signal.SIGTERM)
                rest, errors = await trio.to_thread.run_sync(running.communicate)
    counts = json.loads(rest.splitlines()[-1])
    assert running.returncode == 0
    assert errors == ""
    assert counts["cut"] >= 1
    assert counts["forwarded"] == 2 * (counts["received"] - counts["cut"])
    assert counts["kernel_dropped"] == 0


def test_a_wrong_command_line_is_explained() -> None:
    for arguments, code, reason in (
        (("127.0.0.1:0",), 2, "Missing argument 'TARGET'"),
        (("127.0.0.1", "127.0.0.1:9"), 2, "Invalid value for 'LISTEN': no port"),
        (("127.0.0.1:0", "127.0.0.1:9", "--drop", "7"), 2, "drop is a probability: 0 to 1, not 7.0"),
        (("127.0.0.1:0", "127.0.0.1:9", "--outage", "5"), 2, "Invalid value for '--outage': not START:DURATION"),
        (("192.0.2.1:1", "127.0.0.1:9"), 1, "the gap from 192.0.2.1:1 to 127.0.0.1:9 cannot be opened"),
    ):
        with process(*arguments) as running:
            output, errors = running.communicate(timeout=20)
        assert (running.returncode, output) == (code, "")
        assert reason in errors


async def test_a_process_begins_calm_and_gets_its_faults_by_a_signal() -> None:
    with udp_socket() as sock, udp_socket() as sender:
        target = Target(sock)
        with process("127.0.0.1:0", str(target.address), "--drop", "1", "--calm", "--report", "10ms") as running:
            assert running.stdout is not None
            lines = map(json.loads, running.stdout)

            def wait_for_faults() -> None:
                while not next(lines)["faults"]:
                    pass

            with trio.fail_after(20):
                listening = (await trio.to_thread.run_sync(lambda: next(lines)))["listening"]
                sender.connect(("127.0.0.1", int(listening.rpartition(":")[2])))
                sender.send(b"passes")
                assert await target.wait_for(1) == [b"passes"]
                running.send_signal(signal.SIGUSR2)
                await trio.to_thread.run_sync(wait_for_faults)
                sender.send(b"lost")
                running.send_signal(signal.SIGTERM)
                *_, counts = await trio.to_thread.run_sync(lambda: list(lines))
    assert (counts["received"], counts["forwarded"], counts["dropped"]) == (2, 1, 1)
