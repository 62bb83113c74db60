"""What an egress says of what is delivered, of its gaps and of its health: only what a restart would not take back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from gapconn.admin.egress_view import EgressView
from gapconn.admin.server import serve_admin
from gapconn.bundle import read_bundle
from gapconn.config import Link
from gapconn.egress import Egress
from gapconn.protocol.envelope import Span
from gapconn.units import Address
from tests.services import STREAM, Session, Taking, feed, link, opened, running, until


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)


async def page(egress: Egress, path: str) -> str:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_admin, Address("127.0.0.1", 0), EgressView(egress))
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, verify=False) as client:
            text = (await client.get(path, timeout=60)).text
        nursery.cancel_scope.cancel()
    return text


async def positions(egress: Egress) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await page(egress, "/positions"))["positions"]
    return found


async def test_what_the_sink_has_accepted_is_delivered_once_that_is_stored(way: Link) -> None:
    sink, session = Taking(accepting=False), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, [*session.start, *session.numbers((0, 3), (3, 2))])
        await until(lambda: len(sink.deliveries) == 2)
        assert await positions(egress) == [], "the sink has it, and has not accepted it"
        sink.deliveries[1].accept()
        sink.deliveries[0].accept()
        await until(lambda: bool(egress.delivered.next_positions()))
        [said] = await positions(egress)
        assert (said["topic"], said["partition"], said["next"]) == (STREAM, 0, 5)
    async with opened(way, Taking()) as egress:
        assert egress.delivered.next_positions() == {(STREAM, 0): 5}, "and the next life says the same"


async def test_gaps_are_given_as_they_are_exported(way: Link) -> None:
    session = Session(way)
    async with running(way, Taking()) as egress:
        await feed(egress, [*session.start, *session.numbers((0, 2))])
        session.numbers((2, 3))  # swallowed by the gap
        await feed(egress, session.numbers((5, 1)))
        await until(lambda: egress.journal.positions_missing == 3)
        assert read_bundle(await page(egress, "/gaps")).spans == [Span(STREAM, 0, 2, 4)]
        assert json.loads(await page(egress, "/health"))["gaps"] == 3


async def test_health_says_what_a_monitor_needs(way: Link) -> None:
    sink, session = Taking(accepting=False), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, [*session.start, *session.numbers((0, 1))])
        await until(lambda: len(sink.deliveries) == 1 and egress.sink_stalled_s > 0)
        said = json.loads(await page(egress, "/health"))
        assert (said["role"], said["link"], said["alarms"], said["spool_stuck"]) == ("egress", way.name, [], False)
        assert said["sink_stalled_s"] > 0
        assert said["ingress"] == "active"
        sink.deliveries[0].accept()
