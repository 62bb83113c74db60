"""The admin endpoint over real sockets: what it says, and that no client can hold it up or bring it down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import structlog
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from gapconn import __version__
from gapconn.admin import server
from gapconn.admin.metrics import counter, counters, gauge, gauges
from gapconn.admin.server import serve_admin
from gapconn.admin.view import Page
from gapconn.errors import LinkError
from gapconn.units import Address


@attrs.define
class View:
    """What an end of a link shows, set by the test."""

    role: str = "egress"
    link: str = 'or"<b>ders'
    hangs: list[str] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    missing: list[str] = attrs.field(factory=list)
    facts: dict[str, Any] = attrs.field(factory=dict)
    families: list[Metric] = attrs.field(factory=list)

    def live(self) -> list[str]:
        return self.hangs

    def health(self) -> list[str]:
        return self.problems

    def ready(self) -> list[str]:
        return self.missing

    def status(self) -> dict[str, Any]:
        return self.facts

    def metrics(self) -> Iterable[Metric]:
        return self.families

    def health_facts(self) -> dict[str, Any]:
        return {}

    def pages(self) -> list[Page]:
        return []


@asynccontextmanager
async def serving(view: View) -> AsyncIterator[Address]:
    """A running endpoint; checks that it ends within a second of being cancelled, whatever is still connected."""
    async with trio.open_nursery() as nursery:
        address: Address = await nursery.start(serve_admin, Address("127.0.0.1", 0), view)
        with trio.fail_after(20):
            yield address
        nursery.cancel_scope.cancel()
        cancelled_at = trio.current_time()
    assert trio.current_time() - cancelled_at < 1


async def get(address: Address, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
        return await client.request(method, path, **options)


async def connected(address: Address) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def said(stream: trio.SocketStream) -> bytes:
    """Everything until the other side closes."""
    answer = b""
    try:
        async for part in stream:
            answer += part
    except trio.BrokenResourceError:
        pass  # a reset ends it as well
    return answer


async def test_liveness_health_and_readiness_follow_the_view() -> None:
    view = View()
    async with serving(view) as address:
        for path, good, bad, problems in (
            ("/live", "alive", "hung", view.hangs),
            ("/health", "ok", "failing", view.problems),
            ("/ready", "ready", "not ready", view.missing),
        ):
            answer = await get(address, path)
            assert (answer.status_code, answer.json()) == (200, {"status": good})
            problems.append("the link is interrupted")
            answer = await get(address, path)
            assert (answer.status_code, answer.json()) == (
                503,
                {"status": bad, "problems": ["the link is interrupted"]},
            )
            problems.clear()
            answer = await get(address, path)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"


async def test_status_shows_every_fact_also_odd_ones() -> None:
    facts = {"epoch": 2**64 - 1, "since": datetime(2024, 1, 2, tzinfo=UTC), "spool": Path("/x"), "rate": float("nan")}
    async with serving(View(facts=facts)) as address:
        answer = await get(address, "/status")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"epoch": 2**64 - 1, "since": "2024-01-02T00:00:00Z", "spool": "/x", "rate": None}


async def test_metrics_in_prometheus_and_openmetrics_format() -> None:
    view = View(
        families=[
            counter("gapconn_messages_sent_total", "Messages.", 2**53),
            counters("gapconn_drops_total", "Drops.", "reason", {"stale": 3, 'odd"\n': 4}),
            gauge("gapconn_spool_bytes", "Spooled.", 0),
            gauges("gapconn_queue_batches", "Queued.", "queue", {"sink": 5}),
        ],
        missing=["not yet"],
    )
    labels = {"link": 'or"<b>ders', "role": "egress"}
    expected = {
        ("gapconn_messages_sent_total", ()): 2**53,
        ("gapconn_drops_total", (("reason", "stale"),)): 3,
        ("gapconn_drops_total", (("reason", 'odd"\n'),)): 4,
        ("gapconn_spool_bytes", ()): 0,
        ("gapconn_queue_batches", (("queue", "sink"),)): 5,
        ("gapconn_build_info", (("version", __version__),)): 1,
        ("gapconn_healthy", ()): 1,
        ("gapconn_ready", ()): 0,
    }
    async with serving(view) as address:
        for _ in range(2):  # the labels are not added twice
            for accept, kind, parse in (
                ("*/*", "text/plain; version=0.0.4; charset=utf-8", parse_prometheus),
                (
                    "application/openmetrics-text;version=junk",
                    "application/openmetrics-text; version=1.0.0",
                    parse_openmetrics,
                ),
            ):
                answer = await get(address, "/metrics", headers={"accept": accept})
                assert answer.status_code == 200
                assert answer.headers["content-type"].startswith(kind)
                samples = [sample for family in parse(answer.text) for sample in family.samples]
                ours = [sample for sample in samples if sample.name.startswith("gapconn_")]
                assert all(labels.items() <= sample.labels.items() for sample in ours)
                assert {
                    (s.name, tuple((k, v) for k, v in s.labels.items() if k not in labels)): s.value for s in ours
                } == expected
                process = {sample.name: sample.value for sample in samples if sample.name.startswith("process_")}
                assert process["process_resident_memory_bytes"] > 1_000_000
                assert process["process_open_fds"] > 3
                assert process["process_cpu_seconds_total"] > 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(counter, help="", value=0), "gapconn_sent"),
        (partial(counter, help="", value=0), "sent_total"),
        (partial(counters, help="", label="a", values={}), "gapconn_sent"),
        (partial(gauge, help="", value=0), "gapconn_sent_total"),
        (partial(gauge, help="", value=0), "spool_bytes"),
        (partial(gauges, help="", label="a", values={}), "spool_bytes"),
    ],
)
def test_a_name_against_the_convention_is_a_mistake(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match="is named gapconn_"):
        make(name)


async def test_the_index_links_the_pages_and_escapes_the_link_name() -> None:
    async with serving(View()) as address:
        page = (await get(address, "/")).text
        for path in ("/live", "/health", "/ready", "/metrics", "/status"):
            assert f'href="{path}"' in page
        assert "or&quot;&lt;b&gt;ders" in page
        assert "<b>" not in page
        assert "//" not in page  # nothing from elsewhere


async def test_only_reading_is_allowed() -> None:
    async with serving(View()) as address:
        for path in ("/", "/live", "/health", "/ready", "/metrics", "/status"):
            head = await get(address, path, "HEAD")
            assert (head.status_code, head.content) == (200, b"")
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                refused = await get(address, path, method)
                assert (refused.status_code, refused.text) == (405, "Method Not Allowed")
        for path in ("/nothing", "/health/", "/%00", "/%ff", "/../etc/passwd"):
            missing = await get(address, path)
            assert (missing.status_code, missing.text) == (404, "Not Found")


async def test_many_requests_at_once_on_connections_that_stay_open() -> None:
    view = View(families=[counters("gapconn_drops_total", "Drops.", "reason", {str(n): n for n in range(1000)})])
    answers = []

    async def ask(client: httpx.AsyncClient, path: str) -> None:
        for _ in range(3):
            answer = await client.get(path)
            answers.append(answer.status_code)

    async with serving(view) as address, httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
        async with trio.open_nursery() as nursery:
            for path in ("/health", "/metrics", "/status", "/") * 5:
                nursery.start_soon(ask, client, path)
        assert answers == [200] * 60
        assert (await client.get("/health")).status_code == 200
        # leaving `serving` first ends the endpoint while the client still holds its connections


async def test_an_error_in_the_view_is_answered_and_logged_and_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    view = View()
    view.facts = None  # type: ignore[assignment]  # the mistake
    view.families = [None]  # type: ignore[list-item]  # the mistake
    with structlog.testing.capture_logs() as logs:
        async with serving(view) as address:
            assert (await get(address, "/metrics")).status_code == 500
            assert (await get(address, "/health")).status_code == 200
    assert [entry["event"] for entry in logs] == ["admin_request_failed"]
    assert capfd.readouterr() == ("", "")


NONSENSE = {
    "random": bytes(range(256)) * 40,
    "nul": b"\0" * 5000,
    "tls": bytes.fromhex("16030100f8010000f40303") + b"\x07" * 200,
    "not ascii": "GET /hö HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "wrong length": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "endless header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
    "endless line": b"GET /" + b"x" * 100_000,
    "http/2 and junk": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
    "http/2 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: %%%\r\n\r\njunk" + b"\xff" * 100,
    "websocket": (
        b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + b"\xff" * 100
    ),
    "odd websocket": b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "body without end": b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_harms_nobody(
    nonsense: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_LIMIT_S", 0.2)
    with structlog.testing.capture_logs():
        async with serving(View()) as address:
            async with await connected(address) as stream:
                try:
                    await stream.send_all(NONSENSE[nonsense])
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    pass  # it had seen enough
                with trio.fail_after(5):
                    answer = await said(stream)
            assert b"HTTP/1.1 500" not in answer
            assert (await get(address, "/health")).status_code == 200
    assert capfd.readouterr() == ("", "")


async def test_a_client_that_goes_away_in_the_middle_harms_nobody() -> None:
    view = View(facts={"long": "x" * 5_000_000})
    async with serving(view) as address:
        for request in (b"GET /sta", b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"):
            stream = await connected(address)
            await stream.send_all(request)
            await stream.aclose()
        assert (await get(address, "/health")).status_code == 200


async def test_slow_clients_do_not_keep_it_from_answering_or_ending() -> None:
    view = View(facts={"long": "x" * 50_000_000})  # more than the kernel buffers for a client that does not read
    async with serving(view) as address:
        idle = await connected(address)
        await idle.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await idle.receive_some()
        half = await connected(address)
        await half.send_all(b"GET /health HTTP/1.1\r\nHo")
        deaf = await connected(address)
        await deaf.send_all(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        assert await deaf.receive_some(1000)  # the answer has begun, and is not read further
        assert (await get(address, "/health")).status_code == 200
    for stream in (idle, half, deaf):
        with trio.fail_after(2):
            await said(stream)  # closed
        await stream.aclose()


async def test_a_connection_is_closed_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_LIMIT_S", 0.2)
    async with serving(View(facts={"long": "x" * 50_000_000})) as address:
        stream = await connected(address)
        await stream.send_all(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(0.4)
        with trio.fail_after(5):
            assert len(await said(stream)) < 50_000_000
        await stream.aclose()
        assert (await get(address, "/health")).status_code == 200


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_LIMIT_S", 1.0)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 5)
    with structlog.testing.capture_logs() as logs:
        async with serving(View()) as address:
            streams = [await connected(address) for _ in range(server.CONNECTIONS_MAX)]
            for stream in streams:  # all are being served
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" in await stream.receive_some()
            for _ in range(3):
                async with await connected(address) as refused:
                    with trio.fail_after(5):
                        assert await said(refused) == b""
            for stream in streams:
                await stream.aclose()
            with trio.fail_after(5):
                while not await _answers(address):  # noqa: ASYNC110 - nothing says when it noticed their end
                    await trio.sleep(0.01)
    assert [entry["event"] for entry in logs] == ["admin_connection_refused"]  # and not three times


async def _answers(address: Address) -> bool:
    try:
        return (await get(address, "/health")).status_code == 200
    except httpx.TransportError:
        return False


async def test_it_listens_on_ipv6() -> None:
    async with trio.open_nursery() as nursery:
        address: Address = await nursery.start(serve_admin, Address("::1", 0), View())
        assert str(address).startswith("[::1]:")
        assert (await get(address, "/health")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_an_address_in_use_is_explained() -> None:
    async with serving(View()) as address:
        with pytest.raises(LinkError, match=rf"\[admin\] listen = '{address}'.*GAPCONN_ADMIN_LISTEN"):
            await serve_admin(address, View())
    with pytest.raises(LinkError, match=r"\[admin\] listen = '192\.0\.2\.1:1'"):
        await serve_admin(Address("192.0.2.1", 1), View())
    with pytest.raises(LinkError, match=r"\[admin\] listen = 'no\.such\.host\.invalid:1'"):
        await serve_admin(Address("no.such.host.invalid", 1), View())


async def test_the_address_is_free_again_afterwards() -> None:
    async with serving(View()) as address:
        stream = await connected(address)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(serve_admin, address, View()) == address
        nursery.cancel_scope.cancel()
    await stream.aclose()
