"""A service manager keeps the sockets: what comes while an end is away waits for the next one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import trio

from tests.processes.ends import Ends

ROUND = 300


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """Where the datagrams come out."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def kept() -> Iterator[socket.socket]:
    """What the service manager keeps."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        yield sock


class Datagrams:
    """Numbered datagrams through a pair."""

    def __init__(self, entry: tuple[str, int], target: socket.socket) -> None:
        self.sent = 0
        self.arrived: list[int] = []
        self._entry = entry
        self._target = target

    async def send(self, count: int) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(b"%d" % self.sent, self._entry)
                self.sent += 1
                await trio.sleep(0.001)

    async def all_arrive(self, timeout_s: float = 60) -> None:
        with trio.fail_after(timeout_s):
            while not {*range(self.sent)} <= {*self.arrived}:
                await trio.lowlevel.wait_readable(self._target)
                self.arrived.append(int(self._target.recv(100)))


@pytest.mark.parametrize("orderly", [True, False])
async def test_an_egress_that_is_away(ends: Ends, target: socket.socket, kept: socket.socket, orderly: bool) -> None:
    """Nothing is lost when it is stopped and started again, nor what is sent while a killed one is away."""
    entry = ends.free_address()
    host, port = kept.getsockname()
    ends.configure(
        f'type = "udp"\nlisten = "{entry}"',
        'type = "udp"\nsend_to = "{}:{}"'.format(*target.getsockname()),
        address=f"{host}:{port}",
        interruption_timeout="30s",
    )
    ends.remember_a_session()
    first = ends.start("egress", passed=kept)
    await first.wait_logged("socket_passed")
    await ends.ingress()
    datagrams = Datagrams((entry.host, entry.port), target)
    if orderly:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(datagrams.send, ROUND)
            await trio.sleep(0.1)
            assert await first.stop() == 0
        assert not first.logged("messages_lost")
    else:
        await datagrams.send(ROUND)
        await datagrams.all_arrive()
        await first.until_status(lambda s: s["held"]["unaccepted_messages"] == 0, "all is accepted")
        await trio.sleep(0.5)  # it is noted ten times a second
        await first.kill()
    await datagrams.send(ROUND)
    second = ends.start("egress", passed=kept)
    await datagrams.all_arrive()
    assert datagrams.arrived == [*range(datagrams.sent)]
    status = await second.status()
    assert (status["missed"]["datagrams"], status["missed"]["records"], status["journal"]["entries"]) == (0, 0, 0)


async def test_a_udp_source_that_is_away(ends: Ends, target: socket.socket, kept: socket.socket) -> None:
    ends.configure(
        'type = "udp"\nlisten = "{}:{}"'.format(*kept.getsockname()),
        'type = "udp"\nsend_to = "{}:{}"'.format(*target.getsockname()),
    )
    ends.remember_a_session()
    egress = await ends.egress()
    datagrams = Datagrams(kept.getsockname(), target)
    for _ in range(2):
        await datagrams.send(ROUND)  # nobody is there
        ingress = ends.start("ingress", passed=kept)
        await ingress.wait_logged("source_started")
        await datagrams.send(ROUND)
        await datagrams.all_arrive()
        assert await ingress.stop() == 0
    assert datagrams.arrived == [*range(datagrams.sent)]
    assert (await egress.status())["missed"]["records"] == 0


async def test_a_tcp_source_that_is_away(ends: Ends) -> None:
    """Clients wait for it, and are not refused."""
    with socket.socket() as kept, socket.socket() as target:
        for sock in (kept, target):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        ends.configure(
            'type = "tcp"\nlisten = "{}:{}"'.format(*kept.getsockname()),
            'type = "tcp"\nconnect = "{}:{}"'.format(*target.getsockname()),
        )
        ends.remember_a_session()
        await ends.egress()
        with socket.create_connection(kept.getsockname()) as client:
            client.sendall(b"early")
            ends.start("ingress", passed=kept)
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(target)
                arrived, _ = target.accept()
                with arrived:
                    await trio.lowlevel.wait_readable(arrived)
                    assert arrived.recv(100) == b"early"


async def test_a_socket_that_does_not_fit_is_reported(ends: Ends, kept: socket.socket) -> None:
    ends.configure(sink='type = "discard"')
    egress = ends.start("egress", passed=kept)
    said = await egress.wait_logged("passed_sockets_not_used")
    assert said["passed"] == ["SOCK_DGRAM {}:{}".format(*kept.getsockname())]
    assert said["wanted"] == f"SOCK_DGRAM {ends.address}"
    await egress.wait_logged("sink_started")


async def test_what_is_meant_for_another_process_is_left_alone(ends: Ends, kept: socket.socket) -> None:
    ends.configure(sink='type = "discard"')
    egress = ends.start("egress", environ={"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})
    await egress.wait_logged("sink_started")
    assert not egress.logged("passed_sockets_not_used")
