"""Record values become datagrams: in order, with everything that cannot be sent counted or reported."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import attrs
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gapconn.dedup.repeats import SinkDedup
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sinks.udp import UdpSink, UdpSinkConfig
from gapconn.sources.udp import UdpSource, UdpSourceConfig
from gapconn.testing.pipes import Pipe, ScriptedInlet, make_context
from gapconn.units import Address, BitsPerSecond


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def sink_config(target: socket.socket, *, rate: int = 0) -> UdpSinkConfig:
    return UdpSinkConfig(send_to=Address(*target.getsockname()), rate=BitsPerSecond(rate))


def waiting(target: socket.socket) -> list[bytes]:
    datagrams = []
    while True:
        try:
            datagrams.append(target.recv(65536))
        except BlockingIOError:
            return datagrams


def batch(*values: bytes | None, first: int = 0) -> Batch:
    positions = list(range(first, first + len(values)))
    return Batch(parts=[Records(stream="orders", positions=positions, values=list(values))])


async def test_every_value_is_one_datagram_in_order(target: socket.socket) -> None:
    inlet = ScriptedInlet(script=[batch(b"one", b"", b"two"), batch(b"two", b"x" * 65_507, first=3)])
    with trio.fail_after(5):
        await UdpSink(sink_config(target), make_context()).run(inlet)

    assert waiting(target) == [b"one", b"", b"two", b"two", b"x" * 65_507]
    assert inlet.accepted == [0, 1]
    assert inlet.losses == []


async def test_copies_of_mirror_ports_are_left_out_and_their_deliveries_accepted(target: socket.socket) -> None:
    config = attrs.evolve(sink_config(target), dedup=SinkDedup(identity="hash"))
    inlet, context = ScriptedInlet(script=[batch(b"one", b"one"), batch(b"one"), batch(b"two", b"one")]), make_context()
    with trio.fail_after(5):
        await UdpSink(config, context).run(inlet)

    assert waiting(target) == [b"one", b"two"]
    assert inlet.accepted == [0, 1, 2]
    assert context.counters["repeats_dropped"] == 3


async def test_null_values_are_skipped_counted_and_logged(target: socket.socket) -> None:
    inlet, context = ScriptedInlet(script=[batch(b"a", None, b"b", None)]), make_context()
    with trio.fail_after(5), capture_logs() as logs:
        await UdpSink(sink_config(target), context).run(inlet)

    assert waiting(target) == [b"a", b"b"]
    assert context.counters["null_values"] == 2
    assert [entry["records"] for entry in logs if entry["event"] == "null_values_skipped"] == [2]
    assert inlet.accepted == [0]


async def test_a_value_that_no_datagram_can_hold_is_reported_lost(target: socket.socket) -> None:
    inlet, context = ScriptedInlet(script=[batch(b"a", bytes(65_508), b"b", first=7)]), make_context()
    with trio.fail_after(5):
        await UdpSink(sink_config(target), context).run(inlet)

    assert waiting(target) == [b"a", b"b"]
    assert inlet.losses == [("orders", 8, 8, "too_large_for_a_datagram")]
    assert context.counters["too_large"] == 1
    assert inlet.accepted == [0]


async def test_a_closed_port_is_noticed_and_nothing_is_skipped_when_it_opens(target: socket.socket) -> None:
    config, context = sink_config(target), make_context()
    address = target.getsockname()
    target.close()
    reopened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def script() -> Iterator[Batch]:
        yield batch(b"1", b"2", b"3")
        reopened.bind(address)
        reopened.setblocking(False)
        yield batch(b"4", b"5", first=3)

    inlet = ScriptedInlet(script=script())
    with reopened, trio.fail_after(5), capture_logs() as logs:
        await UdpSink(config, context).run(inlet)
        assert waiting(reopened) == [b"4", b"5"]

    assert context.counters["refused"] == 3
    assert [entry["event"] for entry in logs].count("datagrams_refused") == 1  # of three: a flood is held back
    assert inlet.accepted == [0, 1]


class FailingSocket(socket.socket):
    """A socket whose first sends fail in the ways of a real network."""

    failures: list[OSError]

    def send(self, data: object, flags: int = 0) -> int:
        if self.failures:
            raise self.failures.pop(0)
        return super().send(data, flags)  # type: ignore[arg-type]  # the buffer type has no public name before 3.12


async def test_network_errors_are_tried_again_until_the_datagram_is_out(
    target: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    failures = [
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        OSError(errno.ENOBUFS, "No buffer space available"),
        BlockingIOError(),
        OSError(errno.EMSGSIZE, "Message too long"),  # a router's, about an earlier datagram
    ]

    async def connect(self: UdpSink) -> socket.socket:
        sock = FailingSocket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.failures = failures
        sock.setblocking(False)
        sock.connect(target.getsockname())
        return sock

    monkeypatch.setattr(UdpSink, "_connect", connect)
    inlet, context = ScriptedInlet(script=[batch(b"a", b"b")]), make_context()
    await UdpSink(sink_config(target), context).run(inlet)

    assert not failures
    assert waiting(target) == [b"a", b"b"]
    assert context.counters["send_failed"] == 2
    assert inlet.losses == []


async def test_a_target_whose_name_is_unknown_at_first_is_tried_again(
    target: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    tries = 0

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", target.getsockname())]

    monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
    inlet, context = ScriptedInlet(script=[batch(b"a")]), make_context()
    await UdpSink(UdpSinkConfig(send_to=Address("later.example", 9)), context).run(inlet)

    assert waiting(target) == [b"a"]
    assert context.counters["connect_failed"] == 3


async def test_a_rate_holds_back_with_headers_counted(target: socket.socket, autojump_clock: MockClock) -> None:
    def script() -> Iterator[Batch]:
        yield batch(*[bytes(972)] * 50)
        autojump_clock.jump(10)  # A silence saves up nothing.
        yield batch(*[bytes(972)] * 50, first=50)

    started_at = trio.current_time()
    sink = UdpSink(sink_config(target, rate=800_000), make_context())
    await sink.run(ScriptedInlet(script=script()))

    # 100 times 1000 bytes at 800 kbit/s.
    assert trio.current_time() - started_at == pytest.approx(10 + 1.0, abs=0.02)
    assert len(waiting(target)) == 100


async def test_byte_streams_are_refused_counted_and_accepted(target: socket.socket) -> None:
    chunk = Chunk(stream="1-0", kind=ChunkKind.DATA, position=0, data=memoryview(b"bytes"))
    inlet, context = ScriptedInlet(script=[Batch(parts=[chunk]), batch(b"a")]), make_context()
    with trio.fail_after(5):
        await UdpSink(sink_config(target), context).run(inlet)

    assert waiting(target) == [b"a"]
    assert context.counters["chunks_refused"] == 1
    assert inlet.accepted == [0, 1]


async def test_datagrams_cross_from_source_to_sink(target: socket.socket) -> None:
    context, pipe = make_context(), Pipe()
    source = UdpSource(UdpSourceConfig(listen=Address("127.0.0.1", 0)), context)
    sent = [b"%d" % number * (number % 50) for number in range(500)]
    received: list[bytes] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, pipe)
            nursery.start_soon(UdpSink(sink_config(target), make_context()).run, pipe)
            await wait_all_tasks_blocked()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.connect(("127.0.0.1", int(context.status["listening"].rpartition(":")[2])))
                for datagram in sent:
                    peer.send(datagram)
            while len(received) < len(sent):
                await trio.lowlevel.wait_readable(target)
                received += waiting(target)
            nursery.cancel_scope.cancel()

    assert received == sent
